"""The client as a process, between a pretended agent on its stdio and a pretended daemon on its socket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from oubliette_client.bridge import LINE_BYTES, Lines, Pending, lost

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


@given(st.lists(st.integers(0, 24), min_size=1, max_size=6), st.lists(st.integers(0, 200), max_size=6))
def test_exactly_the_lines_that_fit_survive_whatever_the_split(lengths: list[int], cuts: list[int]) -> None:
    """Ten bytes fit, their newline included; one that is longer is dropped whole and takes no other with it."""
    sent = [bytes([ord("a") + number]) * length for number, length in enumerate(lengths)]
    data = b"".join(line + b"\n" for line in sent)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    lines = Lines(limit=10)
    heard = [line for start, end in pairwise(edges) for line in lines.feed(data[start:end])]
    assert heard == [line for line in sent if 0 < len(line) < 10]


def test_every_split_in_three_of_a_conversation_says_the_same() -> None:
    data = json.dumps(call(1)).encode() + b"\r\n\n" + b'{"jsonrpc":"2.0","id":"\xc3\xa9","result":{}}\n'
    whole = Lines().feed(data)
    assert len(whole) == 2
    for first, second in combinations(range(len(data) + 1), 2):
        lines = Lines()
        pieces = (data[:first], data[first:second], data[second:])
        assert [line for piece in pieces for line in lines.feed(piece)] == whole


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
async def open_rig(path: Path, *, patience_seconds: float | None = None) -> AsyncIterator[Rig]:
    """``patience_seconds``: instead of the program's own."""
    program = [str(PROGRAM)]
    if patience_seconds is not None:
        source = PROGRAM.read_text().replace("PATIENCE_SECONDS = 20.0", f"PATIENCE_SECONDS = {patience_seconds}")
        program = ["-c", f"__file__ = {str(PROGRAM)!r}\n" + source.replace("from __future__ import annotations\n", "")]
    address = str(path / "s")
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(address)
    sock.listen()
    async with trio.open_nursery() as nursery:
        start = partial(
            trio.run_process,
            [sys.executable, *program, "ide"],
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


async def test_bytes_that_come_one_by_one_make_the_same_lines(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        daemon = await rig.accept()
        assert rig.process.stdin is not None
        for byte in json.dumps(call(1)).encode() + b"\n":
            await rig.process.stdin.send_all(bytes([byte]))
        assert await daemon.read() == call(1)
        answer = {"jsonrpc": "2.0", "id": 1, "result": {"content": "\u00fc"}}
        for byte in json.dumps(answer, ensure_ascii=False).encode() + b"\n":
            await daemon._stream.send_all(bytes([byte]))
        assert await rig.agent_hears() == answer


async def test_half_an_answer_never_reaches_the_agent(tmp_path: Path) -> None:
    """The daemon dies in the middle of a line: the call broke, and the next connection's lines are whole."""
    async with open_rig(tmp_path) as rig:
        daemon = await rig.accept()
        await rig.agent_says(call(1))
        await daemon.read()
        await daemon._stream.send_all(b'{"jsonrpc": "2.0", "id": 1, "resu')
        await daemon.hang_up()
        broken = await rig.agent_hears()
        assert (broken["id"], broken["error"]["data"]["error"]["code"]) == (1, "unavailable")
        daemon = await rig.accept()
        assert (await rig.agent_hears())["method"] == "notifications/tools/list_changed"
        await rig.agent_says(call(2))
        assert await daemon.read() == call(2)
        await daemon.say({"jsonrpc": "2.0", "id": 2, "result": {}})
        assert (await rig.agent_hears())["id"] == 2


async def test_a_call_that_fits_no_line_is_answered_and_not_sent(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        daemon = await rig.accept()
        long = {**call(1), "params": {"name": "session", "arguments": {"message": "x" * LINE_BYTES}}}
        await rig.agent_says(long)
        refused = await rig.agent_hears()
        assert refused["id"] == 1
        assert refused["error"]["message"].startswith("too_large: ")
        assert not refused["error"]["data"]["error"]["retryable"]
        await rig.agent_says(call(2))
        assert await daemon.read() == call(2)


async def test_a_daemon_that_stays_away_is_waited_for_once_and_not_once_for_each_call(tmp_path: Path) -> None:
    async with open_rig(tmp_path, patience_seconds=0.5) as rig:
        daemon = await rig.accept()
        await rig.listener.aclose()
        (tmp_path / "s").unlink()
        await rig.agent_says(call(99))
        await daemon.read()
        await daemon.hang_up()
        assert (await rig.agent_hears())["id"] == 99, "from here on it knows that the daemon is away"
        began = trio.current_time()
        for number in range(10):
            await rig.agent_says(call(number))
        for number in range(10):
            refused = await rig.agent_hears()
            assert refused["id"] == number
            assert "Nothing was done" in refused["error"]["message"]
            assert refused["error"]["data"]["error"]["retryable"]
        assert trio.current_time() - began < 3
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(str(tmp_path / "s"))
        sock.listen()
        rig.listener = trio.SocketListener(sock)
        daemon = await rig.accept()
        await rig.agent_says(call(11))
        assert await daemon.read() == call(11), "what was refused is not sent later"


async def test_a_daemon_that_reads_nothing_holds_up_the_agent_and_not_the_memory(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        await rig.accept()
        assert rig.process.stdin is not None
        line = json.dumps({**call(1), "padding": "x" * 50_000}).encode() + b"\n"
        sent = 0
        with trio.move_on_after(1.5):
            while True:
                await rig.process.stdin.send_all(line)
                sent += len(line)
        assert sent < 4 << 20, "the kernel's buffers and one line"
        assert _resident_bytes(rig.process.pid) < 64 << 20


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
