"""Which files of BOP's repositories a data set needs, and where they go.

Source: the repositories bop-benchmark/NAME and bop-benchmark/bop_extra at Hugging Face, and BOP's pages of data sets.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.json_numbers import whole_number
from picopose_cli.bop.known_datasets import KNOWN_SPLITS
from picopose_cli.downloads.fetch import RemoteFile, retried
from picopose_cli.downloads.http import endpoint, read_json_url

OWNER, EXTRA = "bop-benchmark", "bop_extra"
_DETECTION_FOLDERS = (
    "default_detections/classic_bop23_model_based_unseen/cnos-fastsam/",
    "default_detections/h3_bop24_model_based_unseen/",
    "default_detections/industrial_bop25_model_based_unseen/",
    "default_detections/",
)
"""Preferred first: detections of unseen objects by models, as `picopose infer` takes them."""
_TEST_KINDS = ("bop19", "bop24", "bop25", "all", "")
_PART = re.compile(r"\.(zip|z\d\d)$")
_MOST_PAGES = 1000


@dataclass(frozen=True)
class Archive:
    """An archive in one or several parts (.z01 ... .zip, in this order), or a single file that is not unpacked."""

    part: str
    """Of the data set: base, models, test, detections or onboarding."""
    files: tuple[RemoteFile, ...]

    @property
    def name(self) -> str:
        """The name of the last part."""
        return self.files[-1].name

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(file.size for file in self.files)


def list_repository(repository: str, folder: str = "") -> list[RemoteFile]:
    """Return the files of a data-set repository, below a folder of it.

    Raises PicoPoseError when there is none, it may not be read, or the hub cannot be reached.
    """
    place = f"/{urllib.parse.quote(folder)}" if folder else ""
    url: str | None = f"{endpoint()}/api/datasets/{OWNER}/{repository}/tree/main{place}?recursive=true"
    files = []
    for _ in range(_MOST_PAGES):
        if url is None:
            break
        page = url
        entries, url = retried(lambda page=page: read_json_url(page), page)  # type: ignore[misc]
        if not isinstance(entries, list):
            raise PicoPoseError("is not a list of files", where=page, fix="check HF_ENDPOINT")
        files += [one for entry in entries if (one := _parse_entry(entry, repository)) is not None]
    return files


def choose_archives(name: str, what: Iterable[str], files: Sequence[RemoteFile]) -> list[Archive]:
    """Return the archives of the wanted parts of a data set; raises PicoPoseError for a part that there is none of."""
    by_stem: dict[str, list[RemoteFile]] = {}
    for file in files:
        if _PART.search(file.name) and "/" not in file.path:
            by_stem.setdefault(_PART.sub("", file.name), []).append(file)
    chosen = []
    for part in what:
        stems = _stems(name, part, sorted(by_stem))
        if not stems:
            found = ", ".join(sorted(by_stem)) or "no archives"
            fix = f"the repository has {found}; choose parts of them with --what"
            raise PicoPoseError(f"{name} has no archive of its {part}", where=f"{OWNER}/{name}", fix=fix)
        chosen += [Archive(part, _in_order(by_stem[stem], stem)) for stem in stems]
    return chosen


def choose_detections(name: str, files: Sequence[RemoteFile]) -> Archive:
    """Return the default CNOS-FastSAM detections of a data set; raises PicoPoseError when there are none."""
    names = "hope|hopev2" if name in ("hope", "hopev2") else re.escape(name)
    pattern = re.compile(rf"(^|/)cnos-fastsam(-with-mask)?_({names})-test[^/]*\.json(\.gz)?$")
    fitting = sorted((file for file in files if pattern.search(file.path)), key=lambda file: file.path)
    for folder in _DETECTION_FOLDERS:
        for file in fitting:
            if file.path.startswith(folder):
                return Archive("detections", (file,))
    raise PicoPoseError(f"there are no default detections of {name}", where=f"{OWNER}/{EXTRA}", fix="see --what")


def known_names() -> list[str]:
    """Return the names of the data sets that BOP has, as far as they are known here."""
    return list(dict.fromkeys(row.name for row in KNOWN_SPLITS))


def _stems(name: str, part: str, stems: Sequence[str]) -> list[str]:
    """Return the names, without extension, of the archives of a part."""
    if part in ("base", "models"):
        return [stem for stem in stems if stem == f"{name}_{part}"]
    of_part = [stem for stem in stems if stem.startswith(f"{name}_{part}")]
    if part == "onboarding":
        return [stem for stem in of_part if stem.endswith("_static")] or of_part
    for kind in _TEST_KINDS:
        fitting = [stem for stem in of_part if stem.endswith(kind)]
        usual = [stem for stem in fitting if "kinect" not in stem and "canon" not in stem]
        if usual:
            return usual if kind == "" else usual[:1]
    return []


def _in_order(files: Sequence[RemoteFile], stem: str) -> tuple[RemoteFile, ...]:
    """Return the parts of an archive with .zip last; raises PicoPoseError when one is missing."""
    ordered = sorted(files, key=lambda file: (file.name.endswith(".zip"), file.name))
    expected = [f"{stem}.z{index:02d}" for index in range(1, len(files))] + [f"{stem}.zip"]
    if [file.name for file in ordered] != expected:
        raise PicoPoseError(f"the repository lacks parts of {stem}", where=ordered[0].url)
    return tuple(ordered)


def _parse_entry(entry: Any, repository: str) -> RemoteFile | None:
    """Return a file of the hub's listing, None for a folder and what is not understood."""
    if not isinstance(entry, dict) or entry.get("type") != "file" or not isinstance(entry.get("path"), str):
        return None
    lfs = entry.get("lfs")
    size, sha256 = whole_number(entry.get("size")), lfs.get("oid") if isinstance(lfs, dict) else None
    path = entry["path"]
    if size is None or ".." in path.split("/") or path.startswith("/"):
        return None
    url = f"{endpoint()}/datasets/{OWNER}/{repository}/resolve/main/{urllib.parse.quote(path)}"
    is_hash = isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256)
    return RemoteFile(url, path, size, sha256 if is_hash else None)
