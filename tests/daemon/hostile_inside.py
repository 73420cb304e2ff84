"""Runs inside a container as its user: tries to get out by every door it can reach and prints what happened as JSON.

Standard library only; it is fed to ``python3 -`` by test_walls.
"""

from __future__ import annotations

import json
import os
import pathlib
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

SOCKET = "/run/oubliette/relay.sock"
found: dict[str, Any] = {}


def dial() -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(10)
    peer.connect(SOCKET)
    return peer


def answer_to(data: bytes, wait: float = 7) -> str:
    """What the daemon says to these bytes; 'closed' when it hangs up."""
    peer = dial()
    peer.settimeout(wait)
    try:
        peer.sendall(data)
        got = peer.recv(65536)
        return got.decode(errors="replace") or "closed"
    except TimeoutError:
        return "silent"
    except OSError as error:
        return f"closed: {error.errno}"
    finally:
        peer.close()


def attempt(name: str, action: Callable[[], object]) -> None:
    try:
        action()
        found[name] = "worked"
    except OSError as error:
        found[name] = f"refused: {error.strerror}"


def http(request: bytes, wait: float = 7) -> str:
    peer = socket.create_connection(("127.0.0.1", 4097), timeout=wait)
    try:
        peer.sendall(request)
        got = b""
        while True:
            more = peer.recv(65536)
            if not more:
                break
            got += more
            if b"\r\n\r\n" in got and len(got) > 100000:
                break
    except OSError:
        pass
    finally:
        peer.close()
    return got.split(b"\r\n", 1)[0].decode(errors="replace")


def post(path: str, body: bytes, **headers: str) -> str:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
    return http(head.encode() + body)


for place in ("/run/oubliette", "/opt/oubliette", "/usr", "/etc"):
    attempt(f"write {place}", partial(pathlib.Path(f"{place}/x").write_text, "x"))
    attempt(f"link {place}", partial(os.symlink, "/tmp", f"{place}/y"))
attempt("replace socket", lambda: os.rename(SOCKET, "/tmp/s"))
attempt("unlink socket", lambda: os.unlink(SOCKET))
attempt("read root's files", lambda: pathlib.Path("/root/.bashrc").read_text())

hellos = {
    "garbage": b"\x00\xff garbage\n",
    "not json": b"{nope\n",
    "other container": b'{"hello": "http", "container": "another", "container_id": "another"}\nGET / HTTP/1.1\r\n\r\n',
    "unknown kind": b'{"hello": "root"}\n',
    "huge": b"x" * 5000,
    "forged dial": b'{"hello": "dialed", "id": "guess"}\n',
    "deep": b"[" * 4000 + b"\n",
    "empty": b"\n",
}
found["hellos"] = {name: answer_to(data) for name, data in hellos.items()}

opened, refused = [], 0
for _ in range(10000):
    try:
        opened.append(dial())
    except OSError:
        refused += 1
    if len(opened) > 500:
        for peer in opened:
            peer.close()
        opened = []
for peer in opened:
    peer.close()
found["ten thousand"] = refused

capability = json.loads(pathlib.Path("/run/oubliette/opencode.json").read_text())
keys = [p["options"]["apiKey"] for p in capability["provider"].values() if "apiKey" in p.get("options", {})]
key = {"authorization": f"Bearer {keys[0]}"}
good = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "@say hi"}]}).encode()
other = json.dumps({"model": "claude-opus-4-6", "messages": []}).encode()
found["gateway"] = {
    "right": post("/openai-compatible/v1/chat/completions", good, **key),
    "no key": post("/openai-compatible/v1/chat/completions", good),
    "other path": post("/openai-compatible/v1/files", good, **key),
    "absolute url": post("http://169.254.169.254/latest", good, **key),
    "dots": post("/openai-compatible/../../v1/chat/completions", good, **key),
    "other model": post("/openai-compatible/v1/chat/completions", other, **key),
    "not json": post("/openai-compatible/v1/chat/completions", b"{", **key),
    "smuggled": http(
        b"POST /openai-compatible/v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\n\r\n"
    ),
}

for name in ("passwd", "out"):
    target = "/etc/passwd" if name == "passwd" else sys.argv[1]
    for place in (os.getcwd(), "/state", "/cache"):
        attempt(f"symlink {place}/{name}", partial(os.symlink, target, f"{place}/{name}"))
os.mkfifo("fifo")

print(json.dumps(found))
