"""A report as one HTML file that needs no network: the page of `report.html` with its data in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from picopose_cli.base.files import atomic_write_bytes

_MARK = "@DATA@"


def write_page(path: Path, content: Mapping[str, Any]) -> int:
    """Write the page with its content and return its size in bytes; raises PicoPoseError when that is impossible.

    Content from strangers' files stays text: it is JSON in which no tag can begin, and the page shows it as text.
    """
    page = resources.files("picopose_cli.pictures").joinpath("report.html").read_text(encoding="utf-8")
    text = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    data = page.replace(_MARK, text).encode()
    atomic_write_bytes(path, data)
    return len(data)
