"""The relay beside a plain unix socket: the same echo program, reached through a container's relay and directly."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import trio

from benches.report import Table, ms
from oubliette.container.layout import environment
from oubliette.errors import ContainerError
from tests.daemon.in_process import Client, inside, ready_project

PORT = 4711
TRIPS = 2000
CONNECTIONS = 200
MEGABYTES = 128
PIECE = 1 << 16
ECHO = """
import socket, sys, threading
where = sys.argv[1]
if where.isdigit():
    listener = socket.create_server(("127.0.0.1", int(where)), backlog=128)
else:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(where)
    listener.listen(128)
def serve(peer):
    with peer:
        while data := peer.recv(1 << 16):
            peer.sendall(data)
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""

Dial = Callable[[], AbstractAsyncContextManager[trio.abc.HalfCloseableStream]]


async def bench_relay(table: Table, root: Path) -> None:
    """Connections, round trips and bytes per second."""
    path = str(root / "echo.sock")
    with subprocess.Popen([sys.executable, "-c", ECHO, path], stdout=subprocess.PIPE) as plain:
        try:
            assert plain.stdout is not None
            await trio.to_thread.run_sync(plain.stdout.readline)
            async with inside(root / "relay", "bubblewrap") as running:
                project = await ready_project(Client(running))
                async with running.containers.lease(project["project_id"], project["default_workspace_id"]) as ready:
                    argv = ["python3", "-c", ECHO, str(PORT)]
                    await ready.link.start_process("echo", argv, environment(), "/", sweep=False)
                    through: Dial = lambda: ready.link.dial(PORT)  # noqa: E731
                    await _answers(through)
                    await _compare(table, through, lambda: _connected(path))
        finally:
            plain.terminate()


async def _compare(table: Table, through: Dial, direct: Dial) -> None:
    for what, measure in (("connection", _connections), ("round trip of one byte", _trips)):
        pairs = [(await measure(through), await measure(direct)) for _ in range(3)]
        ours, plain = (statistics.median(one[column] for one in pairs) for column in range(2))
        table.add(f"relay: {what}", ms(ours), f"plain unix socket: {ms(plain)}", f"{ms(ours - plain)} more")
    pairs = [(await _bytes(through), await _bytes(direct)) for _ in range(3)]
    ours, plain = (statistics.median(one[column] for one in pairs) for column in range(2))
    table.add(
        "relay: echoed bytes", f"{ours:,.0f} MB/s", f"plain unix socket: {plain:,.0f} MB/s", f"{ours / plain:.2f} times"
    )


@asynccontextmanager
async def _connected(path: str) -> AsyncIterator[trio.abc.HalfCloseableStream]:
    stream = await trio.open_unix_socket(path)
    try:
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


async def _answers(dial: Dial) -> None:
    """Wait until the program inside listens."""
    with trio.fail_after(10):
        while True:
            try:
                async with dial() as stream:
                    await stream.send_all(b"x")
                    if await stream.receive_some(1):
                        return
            except (OSError, trio.BrokenResourceError, ContainerError):
                await trio.sleep(0.05)


async def _connections(dial: Dial) -> float:
    """Median seconds to connect and hear the first byte."""
    took = []
    for _ in range(CONNECTIONS):
        began = trio.current_time()
        async with dial() as stream:
            await stream.send_all(b"x")
            await stream.receive_some(1)
            took.append(trio.current_time() - began)
    return statistics.median(took)


async def _trips(dial: Dial) -> float:
    """Median seconds for one byte there and back, on one connection."""
    took = []
    async with dial() as stream:
        for _ in range(TRIPS):
            began = trio.current_time()
            await stream.send_all(b"x")
            await stream.receive_some(1)
            took.append(trio.current_time() - began)
    return statistics.median(took)


async def _bytes(dial: Dial) -> float:
    """Megabytes a second there and back."""
    wanted = MEGABYTES << 20
    piece = bytes(PIECE)
    async with dial() as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            for _ in range(wanted // PIECE):
                await stream.send_all(piece)

        began = trio.current_time()
        nursery.start_soon(send)
        received = 0
        while received < wanted:
            received += len(await stream.receive_some(PIECE))
        return wanted / 1e6 / (trio.current_time() - began)
