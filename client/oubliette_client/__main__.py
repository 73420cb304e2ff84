"""An MCP server for the agent, over stdio, that is really the daemon: lines are carried to the relay's socket and back.

Started by the agent. When the daemon goes away, every open call is answered with a retryable error, and the client
dials again until it is back; the daemon serves each connection as initialised, so the agent notices nothing else.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import sys
import threading
import time
from typing import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from oubliette_client.bridge import (
    AGENT_LINE_BYTES,
    LINE_BYTES,
    Lines,
    Pending,
    RequestId,
    hello,
    is_id,
    not_sent,
    parse,
    too_long,
    tools_changed,
)

SOCKET = "/run/oubliette/relay.sock"
CHUNK = 1 << 16
FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 5.0
PATIENCE_SECONDS = 20.0
"""How long calls wait for a daemon that has gone away before they are answered with an error; once it has been away for
so long, they are answered at once."""


class Client:
    """One thread reads the agent, this one the daemon; the lock guards the connection and what is pending."""

    def __init__(self, path: str, caller_id: str) -> None:
        self._path = path
        self._caller_id = caller_id
        self._changed = threading.Condition()
        self._daemon: socket.socket | None = None
        self._away_since = time.monotonic()
        self._pending = Pending()
        self._output = threading.Lock()

    def run(self) -> None:
        """Until the agent closes its end."""
        threading.Thread(target=self._follow_daemon, daemon=True).start()
        lines = Lines(AGENT_LINE_BYTES)
        while True:
            data = os.read(0, CHUNK)
            if not data:
                return
            for line in lines.feed(data):
                self._send(line)

    def _send(self, line: bytes) -> None:
        if len(line) >= LINE_BYTES:
            self._refuse(line, too_long)
            return
        with self._changed:
            patience = max(0.0, self._away_since + PATIENCE_SECONDS - time.monotonic())
            self._changed.wait_for(lambda: self._daemon is not None, patience)
            daemon = self._daemon
            if daemon is not None:
                self._pending.sent(line)
        if daemon is None:
            self._refuse(line, not_sent)
            return
        try:
            daemon.sendall(line + b"\n")
        except OSError:
            self._drop(daemon)

    def _refuse(self, line: bytes, answer: Callable[[RequestId], bytes]) -> None:
        message = parse(line)
        if message is not None and "method" in message and is_id(message.get("id")):
            self._tell(answer(message["id"]))

    def _follow_daemon(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        again = False
        while True:
            try:
                daemon = socket.socket(socket.AF_UNIX)
                daemon.connect(self._path)
                daemon.sendall(hello(self._caller_id))
            except OSError:
                time.sleep(backoff)
                backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)
                continue
            if again:
                self._tell(tools_changed())
            again = True
            with self._changed:
                self._daemon = daemon
                self._changed.notify_all()
            began = time.monotonic()
            self._read(daemon)
            self._drop(daemon)
            backoff = FIRST_BACKOFF_SECONDS if time.monotonic() - began > 1 else min(backoff * 2, 5.0)
            time.sleep(backoff)

    def _read(self, daemon: socket.socket) -> None:
        lines = Lines()
        while True:
            try:
                data = daemon.recv(CHUNK)
            except OSError:
                return
            if not data:
                return
            for line in lines.feed(data):
                with self._changed:
                    self._pending.received(line)
                self._tell(line + b"\n")

    def _drop(self, daemon: socket.socket) -> None:
        with self._changed:
            if self._daemon is not daemon:
                return
            self._daemon = None
            self._away_since = time.monotonic()
            broken = self._pending.broken()
        with contextlib.suppress(OSError):
            daemon.shutdown(socket.SHUT_RDWR)  # closing alone does not wake the thread that reads it
        daemon.close()
        for line in broken:
            self._tell(line)

    def _tell(self, line: bytes) -> None:
        with self._output:
            sent = 0
            while sent < len(line):
                sent += os.write(1, line[sent:])


def main() -> None:
    path = os.environ.get("OUBLIETTE_RELAY_SOCKET", SOCKET)
    caller_id = sys.argv[1] if len(sys.argv) > 1 else ""
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        Client(path, caller_id).run()


main()
