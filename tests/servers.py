"""Servers on loopback: files by HTTP ranges, an object store, a Hub; they can be made to fail."""

import contextlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

FAULTS = ("drop", "cut", "short", "busy", "late")
"""No answer; less than promised; less than asked for; 503; none in time. All may pass."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # where it is full, connections are tried again after seconds


class Request(NamedTuple):
    method: str
    path: str
    start: int | None = None  # of the range that is asked for
    stop: int | None = None


class Log:
    """What was asked for, and what shall go wrong: ``fault(request)`` gives a name, or None."""

    def __init__(self):
        self.requests = []
        self.fault = lambda request: None
        self._lock = threading.Lock()

    def add(self, method, path, ranges):
        start = stop = None
        if ranges:
            start, _, last = ranges.removeprefix("bytes=").partition("-")
            start, stop = int(start), int(last) + 1
        request = Request(method, path, start, stop)
        with self._lock:
            self.requests.append(request)
        return request, self.fault(request)

    def ranges(self, suffix=".safetensors"):
        """Those of files of weights, in the order of their bytes."""
        found = [r for r in self.requests if r.method == "GET" and r.path.endswith(suffix)]
        return sorted((r.path, r.start, r.stop) for r in found if r.start is not None)

    def clear(self):
        self.requests.clear()


def first(n, kind):
    """The first ``n`` ranges of weights fail."""
    kinds, lock = iter([kind] * n), threading.Lock()

    def fault(request):
        if request.start is None or not request.path.endswith(".safetensors"):
            return None
        with lock:
            return next(kinds, None)

    return fault


class RangeServer:
    """A folder's files by HTTP ranges, with ETags; no lists of folders, unless ``listing``."""

    handler: type["_Handler"]

    def __init__(self, root, *, listing=False, checks_etags=True):
        self.root, self.listing, self.checks_etags = Path(root), listing, checks_etags
        self.log = Log()
        self.late = 0.5  # seconds
        handler = type("Handler", (self.handler,), {"of": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        serve = self._server.serve_forever
        threading.Thread(target=serve, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()

    def file_of(self, path):
        """The file of a URL's path."""
        return self.root / unquote(path).lstrip("/")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms
    of: RangeServer

    def log_message(self, *arguments):
        pass

    def handle(self):
        # the other side had enough, or this one has dropped it
        with contextlib.suppress(ConnectionError, ValueError):
            super().handle()

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urlsplit(self.path).path
        request, fault = self.of.log.add(self.command, path, self.headers.get("Range"))
        if fault == "drop":
            self.close()
        elif fault == "busy":
            self.answer(503, b"busy")
        elif fault == "refused":
            self.answer(403, b"no")
        else:
            if fault == "late":
                time.sleep(self.of.late)
            self.serve(request, fault)

    def serve(self, request, fault):
        file = self.of.file_of(request.path)
        if file.is_file():
            self.send_file(file, request, fault)
        elif file.is_dir() and self.of.listing:
            links = [f'<a href="{f.name}{"/" * f.is_dir()}">{f.name}</a>' for f in file.iterdir()]
            self.answer(200, "".join(links).encode(), {"Content-Type": "text/html"})
        else:
            self.answer(404, b"none")

    def send_file(self, file, request, fault):
        status = file.stat()
        etag = f'"{status.st_size}-{status.st_mtime_ns}"'
        wanted = self.headers.get("If-Match", etag)
        if self.of.checks_etags and wanted != etag:
            self.answer(412, b"changed")
            return
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        if request.start is None or fault == "whole":
            self.answer(200, file.read_bytes(), headers)
            return
        with file.open("rb") as opened:
            opened.seek(request.start)
            part = opened.read(request.stop - request.start)
        if not part:
            self.answer(416, b"")
            return
        if fault == "short":
            part = part[: len(part) // 2]
        last = request.start + len(part) - 1
        headers["Content-Range"] = f"bytes {request.start}-{last}/{status.st_size}"
        if fault == "cut":
            self.answer(206, part[: len(part) // 2], headers, length=len(part))
            self.close()
        else:
            self.answer(206, part, headers)

    def answer(self, status, body, headers=None, length=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def close(self):
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


RangeServer.handler = _Handler


class _HubHandler(_Handler):
    of: "Hub"

    def serve(self, request, fault):
        parts = unquote(request.path).strip("/").split("/")
        if parts[0] == "api":
            self.answer_api(*self.of.described(parts[2:]))
            return
        file = self.of.file_of(request.path)
        if file is None or not file.is_file():
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            self.send_file(file, request, fault)

    def answer_api(self, status, content):
        headers = {} if status == 200 else {"X-Error-Code": content}
        self.answer(status, json.dumps(content if status == 200 else {}).encode(), headers)


class Hub(RangeServer):
    """What of the Hub's interface it takes to read a model: its commit, its files, their bytes.

    ``root/COMMIT/owner/model`` are folders; ``branches`` says which commit each is at.
    """

    handler = _HubHandler

    def __init__(self, root, **branches):
        self.branches = branches
        super().__init__(root)

    def folder(self, owner, model, revision="main"):
        return self.root / self.branches.get(revision, revision) / owner / model

    def file_of(self, path):
        owner, model, what, revision, *rest = unquote(path).strip("/").split("/")
        return self.folder(owner, model, revision) / "/".join(rest) if what == "resolve" else None

    def described(self, parts):
        """The status and content of ``/api/models/OWNER/MODEL[/revision|tree/REVISION]``."""
        owner, model, what, revision, *_ = [*parts, "revision", "main"]
        folder = self.folder(owner, model, revision)
        if not folder.is_dir():
            known = any(self.root.glob(f"*/{owner}/{model}"))
            return 404, "RevisionNotFound" if known else "RepoNotFound"
        if what == "revision":
            commit = self.branches.get(revision, revision)
            return 200, {"id": f"{owner}/{model}", "sha": commit, "siblings": []}
        return 200, [
            {"type": "file", "path": file.name, "size": file.stat().st_size,
             "oid": f"{file.stat().st_mtime_ns:040x}"}
            for file in sorted(folder.iterdir())
        ]  # fmt: skip


class ObjectStore:
    """moto's S3, in threads of this process."""

    def __init__(self):
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *arguments, **more):
                pass

        self.log = Log()
        self._inner = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._application, threaded=True, request_handler=Quiet
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _application(self, environ, start_response):
        ranges = environ.get("HTTP_RANGE")
        _, fault = self.log.add(environ["REQUEST_METHOD"], environ["PATH_INFO"], ranges)
        if fault:
            said = {"busy": "503 Slow Down", "refused": "403 Forbidden"}[fault]
            start_response(said, [("Content-Length", "0")])
            return [b""]
        return self._inner(environ, start_response)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()
