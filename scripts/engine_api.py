"""The few Docker Engine calls that scripts/engine and scripts/images need, with the standard library alone.

These scripts run before there is a virtual environment, so they cannot use ``oubliette.runtime``.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

OLDEST_API = (1, 41)
SYSTEM_SOCKET = "/var/run/docker.sock"


class EngineProblem(Exception):
    """The engine refused, or there is none; the text says which."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("docker", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Engine:
    """One engine on a unix socket. Calls block; ``timeout`` is the longest silence, in seconds."""

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def host(self) -> str:
        return f"unix://{self.path}"

    def usable(self) -> str:
        """The empty string when it answers and is new enough, else why not."""
        try:
            version = self.json("GET", "/version", timeout=5)
        except EngineProblem as problem:
            return str(problem)
        api = tuple(int(part) for part in str(version.get("ApiVersion", "0.0")).split("."))
        return "" if api >= OLDEST_API else f"{self.path}: Docker Engine {version.get('Version')} is older than 20.10"

    def json(self, method: str, path: str, *, timeout: float = 30, body: IO[bytes] | None = None) -> dict[str, Any]:
        """One call with a JSON answer. Raises EngineProblem."""
        with self._call(method, path, body, timeout) as answer:
            try:
                text = answer.read()
            except OSError as error:
                raise EngineProblem(f"{method} {path}: {error}") from error
        return dict(json.loads(text)) if text.strip() else {}

    def lines(
        self, method: str, path: str, *, timeout: float, body: IO[bytes] | None = None
    ) -> Iterator[dict[str, Any]]:
        """A call answered by JSON lines; a line with ``error`` raises EngineProblem."""
        with self._call(method, path, body, timeout) as answer:
            while True:
                try:
                    line = answer.readline()
                except OSError as error:
                    raise EngineProblem(f"{method} {path}: {error}") from error
                if not line:
                    return
                if line.strip():
                    entry = dict(json.loads(line))
                    if "error" in entry:
                        raise EngineProblem(str(entry["error"]))
                    yield entry

    def _call(self, method: str, path: str, body: IO[bytes] | None, timeout: float) -> http.client.HTTPResponse:
        connection = _UnixConnection(self.path, timeout)
        headers = {"Content-Type": "application/x-tar"} if body is not None else {}
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
        except OSError as error:
            connection.close()
            raise EngineProblem(f"{self.path}: {error}") from error
        if answer.status >= 400:
            text = answer.read().decode("utf-8", "replace").strip()
            raise EngineProblem(f"{method} {path.partition('?')[0]}: {answer.status} {text}")
        return answer


def state_directory() -> Path:
    """Where scripts/engine keeps an engine of its own."""
    given = os.environ.get("OUBLIETTE_ENGINE_DIR")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(given) if given else Path(cache) / "oubliette-engine"


def candidates(state: Path) -> Iterator[Engine]:
    """Engines to try: the one asked for, ours, the system's."""
    asked = os.environ.get("DOCKER_HOST", "")
    if asked.startswith("unix://"):
        yield Engine(urlsplit(asked).path)
    yield Engine(str(state / "docker.sock"))
    yield Engine(SYSTEM_SOCKET)
