"""A real relay: connections in pairs, in both directions, none crossed, and what happens when either end goes."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import pytest
import trio

from oubliette.errors import ContainerError
from oubliette.relay_host import RelayHost
from oubliette_relay import protocol
from tests.relay.harness import PATIENCE, connected, echo, read_all, relay_process, server, until


async def test_a_dial_carries_bytes_both_ways_and_each_end_separately(tmp_path: Path) -> None:
    async with server(echo) as port, connected(tmp_path) as (link, _):
        with trio.fail_after(PATIENCE):
            async with link.dial(port) as stream:
                await stream.send_all(b"ping")
                assert await stream.receive_some(10) == b"ping"
                await stream.send_all(b"last")
                await stream.send_eof()
                assert await read_all(stream) == b"last"
            assert link.expected == 0


async def test_the_inside_may_end_first(tmp_path: Path) -> None:
    heard: list[bytes] = []

    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"hello")
        await stream.send_eof()
        heard.append(await read_all(stream))

    async with server(greet) as port, connected(tmp_path) as (link, _):
        with trio.fail_after(PATIENCE):
            async with link.dial(port) as stream:
                assert await read_all(stream) == b"hello"
                await stream.send_all(b"still here")
                await stream.send_eof()
                await until(lambda: bool(heard))
    assert heard == [b"still here"]


async def test_a_port_where_nobody_listens_is_refused_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with connected(tmp_path) as (link, _):
        with trio.fail_after(3):
            with pytest.raises(ContainerError, match="Connection refused"):
                async with link.dial(port):
                    pass
            with pytest.raises(ContainerError, match="no port"):
                async with link.dial(0):
                    pass


async def test_large_transfers_arrive_whole_at_a_slow_reader(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(5 << 20)

    async def give(stream: trio.SocketStream) -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async with server(give) as port, connected(tmp_path) as (link, _):
        with trio.fail_after(PATIENCE):
            async with link.dial(port) as stream:
                got = bytearray()
                async for piece in stream:
                    got += piece
                    await trio.sleep(0.0005)
    assert got == data


async def test_nobody_reading_stops_the_writer_inside_and_costs_the_relay_nothing(tmp_path: Path) -> None:
    written = 0

    async def flood(stream: trio.SocketStream) -> None:
        nonlocal written
        try:
            while True:
                await stream.send_all(b"x" * 65536)
                written += 65536
        except trio.BrokenResourceError:
            return

    async with server(flood) as port, connected(tmp_path) as (link, relay):
        with trio.fail_after(PATIENCE):
            before = _resident(relay.pid)
            async with link.dial(port):
                seen = -1
                while seen != written:
                    seen = written
                    await trio.sleep(0.3)
            assert written < 32 << 20, "only the kernel's buffers were filled"
            assert _resident(relay.pid) - before < 8 << 20


async def test_200_dials_at_once_are_never_crossed(tmp_path: Path) -> None:
    async with server(echo) as port, connected(tmp_path) as (link, _):

        async def talk(number: int) -> None:
            chance = random.Random(number)
            async with link.dial(port) as stream:
                data = f"{number}:".encode() + chance.randbytes(chance.randrange(100_000))
                async with trio.open_nursery() as both:
                    both.start_soon(_say, stream, data)
                    assert await read_all(stream) == data

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(200):
                    nursery.start_soon(talk, number)
        assert link.expected == 0


async def test_200_model_connections_at_once_are_never_crossed(tmp_path: Path) -> None:
    most = open_now = 0

    async def count_and_echo(stream: trio.abc.HalfCloseableStream, _container: str) -> None:
        nonlocal most, open_now
        open_now += 1
        most = max(most, open_now)
        await echo(stream)
        open_now -= 1

    async with connected(tmp_path, count_and_echo) as (link, _):
        assert link.hello is not None
        port = link.hello.model_port

        async def talk(number: int) -> None:
            chance = random.Random(number)
            data = f"{number}:".encode() + chance.randbytes(chance.randrange(100_000))
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream, trio.open_nursery() as both:
                both.start_soon(_say, stream, data)
                assert await read_all(stream) == data

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(200):
                    nursery.start_soon(talk, number)
    assert most <= protocol.MODEL_LIMIT, "the others waited inside"


async def test_a_connection_whose_daemon_has_gone_for_good_is_closed_inside(tmp_path: Path) -> None:
    """After a half-close, a full one makes no event on the socket: the relay looks for it."""
    ended = trio.Event()

    async def silent(stream: trio.SocketStream) -> None:
        assert await read_all(stream) == b"request"
        try:
            while True:
                await stream.send_all(b".")
                await trio.sleep(0.05)
        except trio.BrokenResourceError:
            ended.set()

    async with server(silent) as port, connected(tmp_path) as (link, _):
        with trio.fail_after(PATIENCE):
            async with link.dial(port) as stream:
                await stream.send_all(b"request")
                await stream.send_eof()
            await ended.wait()


async def test_an_idle_connection_that_was_given_up_after_a_half_close_is_swept(tmp_path: Path) -> None:
    inside: list[trio.SocketStream] = []

    async def idle(stream: trio.SocketStream) -> None:
        inside.append(stream)
        await read_all(stream)
        await trio.sleep_forever()

    async with server(idle) as port, connected(tmp_path) as (link, relay):
        with trio.fail_after(PATIENCE):
            before = _descriptors(relay.pid)
            async with link.dial(port) as stream:
                await stream.send_all(b"request")
                await stream.send_eof()
                assert _descriptors(relay.pid) == before + 2
            await until(lambda: _descriptors(relay.pid) == before)


async def test_a_model_connection_waits_for_a_daemon_that_is_being_restarted(tmp_path: Path) -> None:
    host = RelayHost(serve_model=echo)
    with relay_process(tmp_path):
        async with host.listen("c1", tmp_path) as link:
            with trio.fail_after(PATIENCE):
                await link.wait_connected()
            assert link.hello is not None
            port = link.hello.model_port
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"asked while nobody listened")
            await stream.send_eof()
            async with host.listen("c1", tmp_path):
                with trio.fail_after(PATIENCE):
                    assert await read_all(stream) == b"asked while nobody listened"


async def _say(stream: trio.abc.HalfCloseableStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
