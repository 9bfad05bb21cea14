from __future__ import annotations

import errno
import hashlib
import tempfile

import pytest

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_write_bytes, file_sha256, require_writable


def test_sha256(tmp_path):
    (tmp_path / "weights").write_bytes(b"abc" * 2_000_000)
    assert file_sha256(tmp_path / "weights") == hashlib.sha256(b"abc" * 2_000_000).hexdigest()
    with pytest.raises(PicoPoseError, match="cannot be read"):
        file_sha256(tmp_path / "absent")


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "free space there"),
        (errno.EDQUOT, "free space there"),
        (errno.EROFS, "a folder that you may write to"),
        (errno.EACCES, "a folder that you may write to"),
        (errno.ENAMETOOLONG, "choose another place"),
    ],
)
def test_the_remedy_of_a_failed_write_fits_its_reason(tmp_path, monkeypatch, number, fix):
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, "the reason")

    for name in ("mkstemp", "TemporaryFile"):
        monkeypatch.setattr(tempfile, name, fail)
    for write in (require_writable, lambda path: atomic_write_bytes(path, b"")):
        with pytest.raises(PicoPoseError, match=rf"cannot be written \(the reason\); .*{fix}") as caught:
            write(tmp_path / "file")
        assert ("space" in str(caught.value)) == ("space" in fix)


def test_trying_to_write_makes_no_file_that_a_kill_could_leave(tmp_path, monkeypatch):
    found, real = [], tempfile.TemporaryFile

    def watched(**options):
        stream = real(**options)
        found.append(list(tmp_path.iterdir()))
        return stream

    monkeypatch.setattr(tempfile, "TemporaryFile", watched)
    require_writable(tmp_path / "result.csv")
    assert found == [[]]
