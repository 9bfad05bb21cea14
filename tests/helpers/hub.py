"""A local server that behaves like Hugging Face's: listings in pages, redirects to another host, ranges, faults."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

PAGE_SIZE = 3


@dataclass
class Hub:
    """Files by `repository/path`, faults to show, and the requests that came."""

    files: dict[str, bytes] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    """Repositories that need the token `right`."""
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    """By path: each answer ends after so many bytes, the first one first."""
    without_ranges: bool = False
    broken: set[str] = field(default_factory=set)
    """Paths whose content differs from its hash."""
    statuses: list[int] = field(default_factory=list)
    """Statuses of the next answers, in place of right ones."""
    requests: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    """Path, Range and Authorization of each request."""
    address: str = ""
    cdn_address: str = ""

    def listing(self, repository: str, folder: str, page: int) -> tuple[list[dict[str, object]], bool]:
        prefix = f"{repository}/{folder}".rstrip("/") + "/"
        found = []
        for path, data in sorted(self.files.items()):
            if path.startswith(prefix):
                oid = hashlib.sha256(data).hexdigest()
                name = path.removeprefix(f"{repository}/")
                found.append({"type": "file", "path": name, "size": len(data), "lfs": {"oid": oid, "size": len(data)}})
        found.insert(0, {"type": "directory", "path": "folder", "size": 0})
        return found[page * PAGE_SIZE : (page + 1) * PAGE_SIZE], (page + 1) * PAGE_SIZE < len(found)


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve a hub, and the host that its files are on, for the time of the context."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) for _ in range(2)]
    hub.address, hub.cdn_address = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            path = unquote(url.path)
            hub.requests.append((path, self.headers.get("Range"), self.headers.get("Authorization")))
            if hub.statuses:
                self.answer(hub.statuses.pop(0), b"")
            elif path.startswith("/api/datasets/bop-benchmark/"):
                self.listing(
                    path.removeprefix("/api/datasets/bop-benchmark/"), int(parse_qs(url.query).get("p", "0")[0])
                )
            elif path.startswith("/datasets/bop-benchmark/"):
                self.redirect(path.removeprefix("/datasets/bop-benchmark/"))
            else:
                self.content(path.removeprefix("/cdn/"))

        def is_refused(self, repository: str) -> bool:
            if repository not in hub.gated or self.headers.get("Authorization") == "Bearer right":
                return False
            self.answer(401 if self.headers.get("Authorization") is None else 403, b"")
            return True

        def listing(self, rest: str, page: int) -> None:
            repository, _, folder = rest.partition("/tree/main")
            if self.is_refused(repository):
                return
            if not any(path.startswith(f"{repository}/") for path in hub.files):
                self.answer(404, b"")
                return
            entries, more = hub.listing(repository, folder.strip("/"), page)
            link = f'<{hub.address}{urlsplit(self.path).path}?recursive=true&p={page + 1}>; rel="next"'
            self.answer(200, json.dumps(entries).encode(), {"Link": link} if more else {})

        def redirect(self, rest: str) -> None:
            repository, _, name = rest.partition("/resolve/main/")
            if not self.is_refused(repository):
                self.answer(302, b"", {"Location": f"{hub.cdn_address}/cdn/{repository}/{name}"})

        def content(self, path: str) -> None:
            data = hub.files.get(path)
            if data is None:
                self.answer(404, b"")
                return
            if path in hub.broken:
                data = bytes(len(data))
            begin = self.headers.get("Range")
            first = int(begin.removeprefix("bytes=").rstrip("-")) if begin and not hub.without_ranges else 0
            extra = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"} if first else {}
            cuts = hub.cut_after.get(path)
            self.answer(206 if first else 200, data[first:], extra, cuts.pop(0) if cuts else None)

        def answer(self, status: int, data: bytes, extra: dict[str, str] | None = None, cut: int | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **(extra or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data if cut is None else data[:cut])
            self.close_connection = True

    return Handler
