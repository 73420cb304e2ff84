"""Hostile insides at the daemon's end of a relay: each spoils its own connection, and no more."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oubliette import relay_host
from oubliette.container.link import RelayLink
from oubliette.errors import ContainerError
from oubliette.relay_host import CONNECTION_LIMIT, RelayHost
from oubliette_relay import protocol
from oubliette_relay.protocol import Hello, encode_hello
from tests.relay.harness import PATIENCE, connected, echo, read_all, server, until

CONTROL = encode_hello(Hello("control", boot="b"))
HTTP = encode_hello(Hello("http"))


@asynccontextmanager
async def listening(directory: Path, **doors: object) -> AsyncIterator[RelayLink]:
    host = RelayHost(**{"serve_model": echo, **doors})  # type: ignore[arg-type]
    async with host.listen("c1", directory) as link:
        yield link


async def dial(directory: Path, first: bytes = b"") -> trio.SocketStream:
    stream = await trio.open_unix_socket(directory / "relay.sock")
    if first:
        # One that was refused is closed already; the test finds out by reading.
        with suppress(trio.BrokenResourceError):
            await stream.send_all(first)
    return stream


async def closed(stream: trio.SocketStream) -> bool:
    """Waits until the daemon has closed it."""
    with trio.fail_after(PATIENCE):
        async with stream:
            try:
                while await stream.receive_some(4096):
                    pass
            except trio.BrokenResourceError:
                return True
    return True


@asynccontextmanager
async def pretended_relay(directory: Path, link: RelayLink) -> AsyncIterator[trio.SocketStream]:
    """A control connection that has answered the first question."""
    stream = await dial(directory, CONTROL)
    assert b'"op":"list"' in await stream.receive_some(4096)
    await stream.send_all(protocol.encode(protocol.Processes("hello", ())))
    with trio.fail_after(PATIENCE):
        await link.wait_connected()
    yield stream
    await trio.aclose_forcefully(stream)


async def still_serves(directory: Path) -> None:
    with trio.fail_after(PATIENCE):
        async with await dial(directory, HTTP + b"are you there") as stream:
            await stream.send_eof()
            assert await read_all(stream) == b"are you there"


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b'{"hello":"root"}\n',
        b'{"hello":["control"]}\n',
        b'{"hello":"dialed"}\n',
        b'{"hello":"dialed","id":"' + b"0" * 24 + b'"}\n',
        b'{"hello":"dialed","id":["x"]}\n',
        b'{"hello":"control","version":999}\n',
        b'{"hello":"control","version":"1"}\n',
        b'{"hello":"mcp","container":"another"}\n',
        b"[" * 4000 + b"\n",
        b"x" * 5000,
        b"\n",
        b"\xff\xfe\n",
    ],
)
async def test_a_forged_hello_is_dropped_and_the_next_connection_is_served(tmp_path: Path, said: bytes) -> None:
    async with listening(tmp_path):
        assert await closed(await dial(tmp_path, said))
        await still_serves(tmp_path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=4))
async def test_garbage_in_any_pieces_is_dropped(tmp_path: Path, garbage: list[bytes]) -> None:
    async with listening(tmp_path):
        stream = await dial(tmp_path)
        with suppress(trio.BrokenResourceError):
            for piece in garbage:
                await stream.send_all(piece)
            await stream.send_eof()
        assert await closed(stream)
        await still_serves(tmp_path)


async def test_a_hello_must_come_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HELLO_SECONDS", 0.1)
    async with listening(tmp_path):
        assert await closed(await dial(tmp_path))
        assert await closed(await dial(tmp_path, b'{"hello":'))
        await still_serves(tmp_path)


async def test_what_comes_with_the_hello_belongs_to_the_stream(tmp_path: Path) -> None:
    heard: list[tuple[bytes, str]] = []

    async def serve_mcp(stream: trio.abc.HalfCloseableStream, container_id: str, caller_id: str) -> None:
        heard.append((bytes(await stream.receive_some(3)), container_id + caller_id))
        heard.append((await read_all(stream), container_id))
        await stream.send_all(b"bye")

    async with (
        listening(tmp_path, serve_mcp=serve_mcp),
        await dial(tmp_path, encode_hello(Hello("mcp", "-ide")) + b"abcdef") as stream,
    ):
        await stream.send_all(b"ghi")
        await stream.send_eof()
        assert await read_all(stream) == b"bye"
    assert heard == [(b"abc", "c1-ide"), (b"defghi", "c1")]


async def test_mcp_is_refused_where_it_is_not_served(tmp_path: Path) -> None:
    async with listening(tmp_path):
        assert await closed(await dial(tmp_path, encode_hello(Hello("mcp"))))


async def test_a_handler_that_crashes_takes_nothing_with_it(tmp_path: Path) -> None:
    async def crash(stream: trio.abc.HalfCloseableStream, _container_id: str) -> None:
        raise ValueError(f"one bad connection: {stream}")

    async with listening(tmp_path, serve_model=crash) as link, pretended_relay(tmp_path, link):
        assert await closed(await dial(tmp_path, HTTP))
        assert await closed(await dial(tmp_path, HTTP))
        assert link.connected


async def test_there_is_one_control_connection_and_the_first_is_it(tmp_path: Path) -> None:
    async with listening(tmp_path) as link:
        async with pretended_relay(tmp_path, link):
            assert await closed(await dial(tmp_path, CONTROL))
            assert link.connected
        with trio.fail_after(PATIENCE):
            await link.wait_disconnected()
        async with pretended_relay(tmp_path, link):
            assert link.connected


@pytest.mark.parametrize(
    "line",
    [
        b"x" * (protocol.LINE_BYTES + 1),
        b"not json\n",
        b'{"op":"start"}\n',
        b'{"op":"heartbeat","memory":{"agent":-1e99}}\n',
        b'{"op":"processes","id":"hello","processes":[1]}\n',
        b"".join(
            protocol.encode(protocol.ProcessState(f"p{number}", "", 1, 1, running=False, settled=True))
            for number in range(100)
        ),
        b"".join(
            protocol.encode(protocol.ProcessState("agent", "", number, 1, running=False, settled=True))
            for number in range(1, 200)
        ),
    ],
)
async def test_a_control_connection_that_breaks_the_rules_is_dropped_and_may_come_again(
    tmp_path: Path, line: bytes
) -> None:
    async with listening(tmp_path) as link:
        async with pretended_relay(tmp_path, link) as stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(line)
            assert await closed(stream)
        async with pretended_relay(tmp_path, link):
            assert link.connected


async def test_a_relay_that_is_silent_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SILENCE_SECONDS", 0.1)
    async with listening(tmp_path) as link, pretended_relay(tmp_path, link):
        with trio.fail_after(PATIENCE):
            await link.wait_disconnected()


async def test_answers_nobody_asked_for_are_ignored(tmp_path: Path) -> None:
    async with listening(tmp_path) as link, pretended_relay(tmp_path, link) as stream:
        await stream.send_all(
            protocol.encode(protocol.Done("0" * 24))
            + protocol.encode(protocol.Killed("1", -5, -5))
            + protocol.encode(protocol.Heartbeat({"agent": 1234}))
        )
        await until(lambda: link.memory_bytes("agent") == 1234)
        assert link.connected


async def test_a_wrong_answer_is_an_error_of_the_caller_alone(tmp_path: Path) -> None:
    async with listening(tmp_path) as link, pretended_relay(tmp_path, link) as stream:

        async def answer() -> None:
            line = bytes(await stream.receive_some(4096))
            id_ = protocol.decode_to_relay(line.strip()).id
            await stream.send_all(protocol.encode(protocol.Done(id_)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            with pytest.raises(ContainerError, match="without a connection"):
                async with link.dial(80):
                    pass
        assert link.connected


@pytest.mark.parametrize(
    "result",
    [
        b"",
        b"x" * 5000,
        b"{}\n",
        protocol.encode(protocol.ExecDone(0, 1 << 40, 0, 1 << 40, 0)),
        protocol.encode(protocol.ExecDone(0, 100, 0, 50, 0)),
        protocol.encode(protocol.ExecDone(0, -1, 0, 0, 0)),
        protocol.encode(protocol.ExecDone(0, 100, 0, 100, 0)) + b"too little",
    ],
)
async def test_an_exec_that_is_answered_with_nonsense_is_an_error(tmp_path: Path, result: bytes) -> None:
    async with listening(tmp_path) as link, pretended_relay(tmp_path, link) as stream:

        async def answer() -> None:
            line = bytes(await stream.receive_some(4096))
            id_ = protocol.decode_to_relay(line.strip()).id
            async with await dial(tmp_path, encode_hello(Hello("dialed", id=id_)) + result) as back:
                await back.send_eof()
                await closed(back)

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                with pytest.raises(ContainerError, match="its connection broke"):
                    await link.exec(["true"], env={})
        assert link.expected == 0


async def test_more_connections_than_allowed_are_refused_at_once_and_dials_are_not_shut_out(tmp_path: Path) -> None:
    async with server(echo) as port, connected(tmp_path) as (link, _), AsyncExitStack() as stack:
        with trio.fail_after(PATIENCE):
            for _ in range(CONNECTION_LIMIT - 1):
                held = await stack.enter_async_context(await dial(tmp_path, HTTP + b"x"))
                assert await held.receive_some(1) == b"x"
            assert await closed(await dial(tmp_path, HTTP))
            async with link.dial(port) as through:
                await through.send_all(b"through")
                assert await through.receive_some(10) == b"through"
            await held.aclose()
            while not await _served(tmp_path):
                pass


async def _served(directory: Path) -> bool:
    async with await dial(directory) as stream:
        try:
            await stream.send_all(HTTP + b"y")
            return await stream.receive_some(1) == b"y"
        except trio.BrokenResourceError:
            return False


FLOOD = """
import socket, sys
kinds = [b"", b"x" * 5000, b'{"hello":"dialed","id":"1"}\\n', b'{"hello":"control"}\\n{"op":"list"', b'{"hello":']
held = []
for number in range(10_000):
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.connect(sys.argv[1])
        peer.send(kinds[number % len(kinds)])
    except OSError:
        pass
    held.append(peer)
    if len(held) > 400:
        held.pop(0).close()
"""


async def test_10000_connections_are_bounded_in_time_and_memory_and_leave_others_alone(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad", tmp_path / "good"
    bad.mkdir()
    good.mkdir()
    host = RelayHost(serve_model=echo)
    slowest = 0.0
    async with server(echo) as port, connected(good) as (link, _), host.listen("c2", bad):
        before = _resident()
        with trio.fail_after(90):
            async with trio.open_nursery() as nursery:
                command = [sys.executable, "-c", FLOOD, str(bad / "relay.sock")]
                flood = await nursery.start(trio.run_process, command)
                while flood.poll() is None:
                    started = trio.current_time()
                    async with link.dial(port) as stream:
                        await stream.send_all(b"x")
                        assert await stream.receive_some(1) == b"x"
                    slowest = max(slowest, trio.current_time() - started)
                    await trio.sleep(0.01)
        assert slowest < 0.5
        assert _resident() - before < 16 << 20
        await still_serves(bad)


async def test_a_relay_that_talks_without_end_does_not_keep_the_daemon_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = protocol.encode(protocol.Heartbeat({"agent": 1}))
    async with listening(tmp_path) as link, pretended_relay(tmp_path, link) as stream:
        sent = 0
        with trio.move_on_after(2):
            while True:
                await stream.send_all(beat * 1000)
                sent += 1000 * len(beat)
        assert sent < 12 << 20
        assert link.connected


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_limits_are_those_that_the_security_page_promises() -> None:
    assert (relay_host.CONNECTION_LIMIT, protocol.HELLO_BYTES, protocol.HELLO_SECONDS) == (64, 4096, 5.0)
    assert protocol.LINE_BYTES == 1 << 20
