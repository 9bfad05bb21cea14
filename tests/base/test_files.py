from __future__ import annotations

import hashlib

import pytest

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import file_sha256


def test_sha256(tmp_path):
    (tmp_path / "weights").write_bytes(b"abc" * 2_000_000)
    assert file_sha256(tmp_path / "weights") == hashlib.sha256(b"abc" * 2_000_000).hexdigest()
    with pytest.raises(PicoPoseError, match="cannot be read"):
        file_sha256(tmp_path / "absent")
