"""Requests to a hub of files: addresses, the user's token, and what the answers mean."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from picopose_cli import __version__
from picopose_cli.base.errors import PicoPoseError

ENDPOINT_VARIABLE, TOKEN_VARIABLE = "HF_ENDPOINT", "HF_TOKEN"
DEFAULT_ENDPOINT = "https://huggingface.co"
TIMEOUT_S = 30.0
_LARGEST_LISTING = 1 << 26
_REFUSED = (401, 403)


class ConnectionLostError(Exception):
    """A connection that failed in a way that may be gone when it is tried again."""


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but gives the token to no other server, and no answer over plain HTTP to an HTTPS request."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if old.scheme == "https" and new.scheme != "https":
            raise PicoPoseError(f"{old.hostname} redirects to a place without encryption", where=newurl)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and (old.hostname, old.port) != (new.hostname, new.port):
            request.remove_header("Authorization")
        return request


def endpoint() -> str:
    """Return the address of the hub: HF_ENDPOINT, as for huggingface_hub, or the public one."""
    return (os.environ.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT).rstrip("/")


def read_token() -> str | None:
    """Return the user's token: HF_TOKEN, or the file where `hf auth login` keeps it; None without one."""
    if os.environ.get(TOKEN_VARIABLE):
        return os.environ[TOKEN_VARIABLE].strip()
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    path = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


@contextmanager
def open_url(url: str, headers: Mapping[str, str] | None = None) -> Iterator[Any]:
    """Open an address of the hub for the time of the context; redirects are followed.

    Raises PicoPoseError for an answer that will not change (no such file, no right to it), ConnectionLostError for one
    that may, also while the answer is read.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise PicoPoseError("is not an address of a web server", where=url, fix=f"check {ENDPOINT_VARIABLE}")
    token = read_token()
    sent = {"User-Agent": f"picopose/{__version__}", **(headers or {})}
    request = urllib.request.Request(url, headers=sent | ({"Authorization": f"Bearer {token}"} if token else {}))
    try:
        with urllib.request.build_opener(_SafeRedirects).open(request, timeout=TIMEOUT_S) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        raise _answer_error(error, url, token) from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConnectionLostError(str(reason)) from error


def read_json_url(url: str) -> tuple[Any, str | None]:
    """Return the JSON at an address and the address of its next page; raises as `open_url`."""
    with open_url(url) as answer:
        data = answer.read(_LARGEST_LISTING)
        following = _next_page(answer.headers.get("Link", ""))
    try:
        return json.loads(data), following
    except (ValueError, RecursionError) as error:
        raise PicoPoseError("is not a list of files", where=url, fix=f"check {ENDPOINT_VARIABLE}") from error


def unreachable_error(url: str, reason: str) -> PicoPoseError:
    """Return the error of a server that cannot be reached, after all tries."""
    host = urllib.parse.urlsplit(url).netloc
    fix = (
        f"check the network (proxies: https_proxy), or set {ENDPOINT_VARIABLE} to a mirror; the same command continues"
    )
    return PicoPoseError(f"{host} cannot be reached ({reason})", fix=fix)


def _answer_error(error: urllib.error.HTTPError, url: str, token: str | None) -> Exception:
    if error.code in _REFUSED:
        what = "needs a token" if token is None else "is refused with this token"
        page = url.partition("/resolve/")[0].replace("/api/", "/").partition("/tree/")[0]
        tokens = f"{endpoint()}/settings/tokens"
        fix = f"accept the licence on {page}, then set {TOKEN_VARIABLE} to a token of yours ({tokens})"
        return PicoPoseError(f"{what} (HTTP {error.code})", where=url, fix=fix)
    if error.code == 404:
        return PicoPoseError("does not exist (HTTP 404)", where=url, fix="check the name")
    if error.code >= 500 or error.code in (408, 429):
        return ConnectionLostError(f"HTTP {error.code}")
    return PicoPoseError(f"cannot be fetched (HTTP {error.code} {error.reason})", where=url)


def _next_page(links: str) -> str | None:
    for link in links.split(","):
        address, _, relation = link.partition(";")
        if 'rel="next"' in relation:
            return address.strip().strip("<>")
    return None
