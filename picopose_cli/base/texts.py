"""Texts of files in messages."""

from __future__ import annotations

_SHOWN_CHARACTERS = 80


def shorten(text: str) -> str:
    """Return a text of a file for a message: cut where it is long."""
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
