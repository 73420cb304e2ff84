"""A daemon as the CLI sees it: real HTTP, answers given by the test, and the home's lock held as a daemon holds it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from oubliette.home import Home, write_private

Json = dict[str, Any]
SECRET = "oub_" + "c" * 64


class Refusal(Exception):
    """The daemon's answer is an error."""

    def __init__(self, status: int, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.error = {"code": code, "message": message, "hint": hint, "retryable": False}


@dataclass
class FakeDaemon:
    """``tools`` answers calls by ``tool.action``; ``streams`` are the bodies of successive event streams."""

    url: str = ""
    tools: dict[str, Callable[[Json], Json]] = field(default_factory=dict)
    streams: list[bytes] = field(default_factory=list)
    calls: list[tuple[str, Json]] = field(default_factory=list)
    stream_requests: list[tuple[str, str | None]] = field(default_factory=list)
    ready: tuple[int, Json] = (200, {"status": "ready"})

    def answer(self, tool: str, arguments: Json) -> Json:
        action = arguments.get("action")
        name = f"{tool}.{action}" if action else tool
        self.calls.append(
            (name, {key: value for key, value in arguments.items() if key not in {"action", "max_chars"}})
        )
        if name not in self.tools:
            raise Refusal(400, "unknown_action", f"the test has no {name}")
        return self.tools[name](arguments)

    def called(self, name: str) -> list[Json]:
        return [arguments for called, arguments in self.calls if called == name]


def sse(*events: Json, end: bool = False, start: int = 0) -> bytes:
    """An event stream's body: a comment, the events with cursors from ``start``, perhaps the end."""
    text = ": hello\nretry: 2000\n\n"
    for number, event in enumerate(events, start):
        kind = event["type"]
        cursor = "" if kind == "delta" else f"id: {number}\n"
        text += f"{cursor}event: {kind}\ndata: {json.dumps(event)}\n\n"
    return (text + ("event: end\ndata: {}\n\n" if end else "")).encode()


@contextmanager
def fake_daemon(home: Home) -> Iterator[FakeDaemon]:
    """Runs until the block ends."""
    fake = FakeDaemon()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_args: object) -> None:
            """Silence."""

        def _send(self, status: int, body: Json) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            if self.path == "/health":
                self._send(200, {"status": "ok"})
            elif self.path == "/ready":
                self._send(*fake.ready)
            elif self.headers["Authorization"] != f"Bearer {SECRET}":
                error = {"code": "unauthenticated", "message": "This needs a token.", "hint": ""}
                self._send(401, {"jsonrpc": "2.0", "id": None, "error": {"code": -32001, "message": "", "data": error}})
            else:
                fake.stream_requests.append((self.path, self.headers["Last-Event-ID"]))
                if not fake.streams:
                    self.send_response(204)
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                self.wfile.write(fake.streams.pop(0))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.headers["Authorization"] != f"Bearer {SECRET}":
                self._send(401, {"error": {"code": "unauthenticated", "message": "The token is not known."}})
                return
            try:
                self._send(200, fake.answer(self.path.removeprefix("/v1/tools/"), body))
            except Refusal as refusal:
                self._send(refusal.status, {"error": refusal.error})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        with home.lock():
            write_private(home.daemon_file, json.dumps({"pid": os.getpid(), "url": fake.url}))
            write_private(home.cli_token_file, SECRET)
            yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
