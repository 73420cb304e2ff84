"""The client as a process, between a pretended agent on its stdio and a pretended daemon on its socket."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from oubliette_client.bridge import Lines, Pending, lost

PROGRAM = Path(__file__).parents[2] / "client" / "oubliette_client" / "__main__.py"


@given(st.lists(st.binary(max_size=20)), st.integers(1, 7))
def test_lines_are_the_same_however_the_bytes_are_split(parts: list[bytes], size: int) -> None:
    data = b"\n".join(part.replace(b"\n", b" ") for part in parts) + b"\n"
    whole = Lines().feed(data)
    lines = Lines()
    split = [line for at in range(0, len(data), size) for line in lines.feed(data[at : at + size])]
    assert split == whole == [line for line in data.split(b"\n") if line.strip()]


def test_a_line_that_is_too_long_is_dropped_and_the_next_is_not() -> None:
    lines = Lines(limit=10)
    assert lines.feed(b"x" * 8) == []
    assert lines.feed(b"x" * 8) == []
    assert lines.feed(b"xx\nshort\n") == [b"short"]


def test_only_calls_are_pending_and_each_is_answered_once() -> None:
    pending = Pending()
    pending.sent(b'{"jsonrpc":"2.0","id":1,"method":"tools/call"}')
    pending.sent(b'{"jsonrpc":"2.0","id":"two","method":"tools/call"}')
    pending.sent(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
    pending.received(b'{"jsonrpc":"2.0","id":1,"result":{}}')
    assert pending.broken() == [lost("two")]
    assert pending.broken() == []


class Peer:
    """The pretended daemon's end of one connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._lines = Lines()
        self._ready: list[bytes] = []

    async def read(self) -> Any:
        with trio.fail_after(10):
            while not self._ready:
                self._ready += self._lines.feed(await self._stream.receive_some())
            return json.loads(self._ready.pop(0))

    async def say(self, message: Any) -> None:
        await self._stream.send_all(json.dumps(message).encode() + b"\n")

    async def hang_up(self) -> None:
        await self._stream.aclose()


class Rig:
    def __init__(self, process: trio.Process, listener: trio.SocketListener) -> None:
        self.process = process
        self.listener = listener
        self._lines = Lines()
        self._ready: list[bytes] = []
        self._peers: list[Peer] = []

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):
            for peer in self._peers:
                await peer.hang_up()
            await self.listener.aclose()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    await pipe.aclose()

    async def accept(self) -> Peer:
        with trio.fail_after(15):
            peer = Peer(await self.listener.accept())
        self._peers.append(peer)
        assert await peer.read() == {"hello": "mcp", "id": "ide"}
        return peer

    async def agent_says(self, message: Any) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(json.dumps(message).encode() + b"\n")

    async def agent_hears(self) -> Any:
        assert self.process.stdout is not None
        with trio.fail_after(10):
            while not self._ready:
                data = await self.process.stdout.receive_some()
                assert data, "the client ended"
                self._ready += self._lines.feed(data)
            return json.loads(self._ready.pop(0))


@asynccontextmanager
async def open_rig(path: Path) -> AsyncIterator[Rig]:
    address = str(path / "s")
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(address)
    sock.listen()
    async with trio.open_nursery() as nursery:
        start = partial(
            trio.run_process,
            [sys.executable, str(PROGRAM), "ide"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"OUBLIETTE_RELAY_SOCKET": address},
            check=False,
        )
        process: trio.Process = await nursery.start(start)
        rig = Rig(process, trio.SocketListener(sock))
        try:
            yield rig
        finally:
            nursery.cancel_scope.cancel("rig closed")
            await rig.aclose()


def call(number: int) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {"name": "session", "arguments": {}}}


async def test_lines_go_both_ways_as_they_are(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        daemon = await rig.accept()
        await rig.agent_says(call(1))
        assert await daemon.read() == call(1)
        await daemon.say({"jsonrpc": "2.0", "id": 1, "result": {"content": "ü"}})
        assert await rig.agent_hears() == {"jsonrpc": "2.0", "id": 1, "result": {"content": "ü"}}


async def test_open_calls_end_with_a_retryable_error_when_the_daemon_goes_and_later_ones_work(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        daemon = await rig.accept()
        await rig.agent_says(call(1))
        await rig.agent_says(call(2))
        assert (await daemon.read())["id"] == 1
        assert (await daemon.read())["id"] == 2
        await daemon.say({"jsonrpc": "2.0", "id": 1, "result": {}})
        assert (await rig.agent_hears())["id"] == 1
        await daemon.hang_up()
        broken = await rig.agent_hears()
        assert broken["id"] == 2
        assert broken["error"]["data"]["error"]["retryable"] is True
        await rig.agent_says(call(3))
        daemon = await rig.accept()
        assert (await rig.agent_hears())["method"] == "notifications/tools/list_changed"
        assert await daemon.read() == call(3), "nothing is sent twice"
        await daemon.say({"jsonrpc": "2.0", "id": 3, "result": {}})
        assert (await rig.agent_hears())["id"] == 3


async def test_the_client_ends_with_its_agent(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        await rig.accept()
        assert rig.process.stdin is not None
        await rig.process.stdin.aclose()
        with trio.fail_after(5):
            assert await rig.process.wait() == 0


@pytest.mark.parametrize("garbage", [b"", b"\n\n", b"nope\n", b"[1]\n", b"\xff\xfe\n"])
async def test_garbage_from_either_side_breaks_nothing(tmp_path: Path, garbage: bytes) -> None:
    async with open_rig(tmp_path) as rig:
        daemon = await rig.accept()
        assert rig.process.stdin is not None
        await rig.process.stdin.send_all(garbage)
        await daemon._stream.send_all(b'{"jsonrpc": "2.0", "method": "x"}\n')
        await rig.agent_says(call(9))
        heard = await rig.agent_hears()
        assert heard["method"] == "x"
