"""Transcripts: bytes in, bytes out, and whether the connection lives on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from oubliette.core import limits
from oubliette.gateway import http1
from oubliette.gateway.http1 import ClientGone, Exchange, Headers, Refused, serve_http

POST = b"POST /x HTTP/1.1\r\nHost: h\r\n"
JSON = [("content-type", "application/json")]


@dataclass
class Server:
    """The client's end of a connection to a server that answers with what it got."""

    stream: trio.abc.HalfCloseableStream
    bodies: list[bytes] = field(default_factory=list)
    received: bytes = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def until(self, end: bytes) -> bytes:
        """Everything received so far, once it has ``end`` in it."""
        while end not in self.received:
            data = await self.stream.receive_some()
            assert data, f"closed after {self.received!r}"
            self.received += data
        return self.received

    async def all(self) -> bytes:
        """Everything until the server closes."""
        async for data in self.stream:
            self.received += data
        return self.received


Handler = Callable[[Exchange], object]


def _refusal(refused: Refused, target: str) -> tuple[Headers, bytes]:
    return [("x-target", target or "-")], refused.message.encode()


@asynccontextmanager
async def serving(max_bytes: int = 1000) -> AsyncIterator[Server]:
    ours, theirs = memory_stream_pair()
    server = Server(ours)

    async def echo(exchange: Exchange) -> None:
        body = await exchange.read_body(max_bytes)
        server.bodies.append(body)
        await exchange.answer(200, JSON, b"got " + body)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_http, theirs, echo, _refusal)
            yield server
            await ours.aclose()


async def test_two_requests_on_one_connection_are_answered_in_turn() -> None:
    async with serving() as server:
        await server.send(POST + b"Content-Length: 3\r\n\r\none")
        await server.until(b"got one")
        await server.send(POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n")
        received = await server.until(b"got two")
    assert received.count(b"HTTP/1.1 200") == 2
    assert server.bodies == [b"one", b"two"]


async def test_a_request_is_understood_at_every_split_of_its_bytes() -> None:
    request = POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n1\r\n!\r\n0\r\n\r\n"
    for at in range(1, len(request)):
        async with serving() as server:
            await server.send(request[:at])
            await trio.testing.wait_all_tasks_blocked()
            await server.send(request[at:])
            await server.until(b"got two!")


SMUGGLED = {
    "both framings": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "one length twice": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a list of lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "a signed length": POST + b"Content-Length: +3\r\n\r\nabc",
    "two codings": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "another coding": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a bad chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    "a negative chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n",
    "a folded header": POST + b"Content-Length: 3\r\n X: y\r\n\r\nabc",
    "a folded line by tab": POST + b"X: y\r\n\tContent-Length: 30\r\nContent-Length: 3\r\n\r\nabc",
    "space before the colon": POST + b"Content-Length : 3\r\n\r\nabc",
    "bare line feeds": b"POST /x HTTP/1.1\nHost: h\nContent-Length: 3\r\n\r\nabc",
    "a bare line feed in a value": POST + b"X: a\nContent-Length: 3\r\n\r\nabc",
    "a bare carriage return": POST + b"X: a\rContent-Length: 3\r\n\r\nabc",
    "a NUL": POST + b"X: a\0b\r\nContent-Length: 3\r\n\r\nabc",
    "bytes behind the body": POST + b"Content-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "a request behind a chunked one": POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + POST + b"\r\n",
    "no host": b"POST /x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
    "an upgrade": POST + b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
    "a tunnel": b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n",
    "no HTTP at all": b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
    "an old version": b"POST /x\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLED)
async def test_framing_that_two_readers_could_understand_differently_is_refused_and_the_connection_closed(
    name: str,
) -> None:
    async with serving() as server:
        await server.send(SMUGGLED[name])
        answer = await server.all()
    status = int(answer.split(b" ", 2)[1])
    assert status in {400, 501}, answer
    assert answer.count(b"HTTP/1.1") == 1
    assert b"connection: close" in answer.lower()
    assert not server.bodies


async def test_a_body_that_is_announced_too_large_is_refused_before_it_is_sent() -> None:
    async with serving(max_bytes=10) as server:
        await server.send(POST + b"Content-Length: 11\r\n\r\n")
        assert b" 413 " in await server.all()


async def test_a_chunked_body_is_cut_off_where_it_gets_too_large() -> None:
    async with serving(max_bytes=10) as server:
        await server.send(POST + b"Transfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n")
        await server.send(b"6\r\nabcdef\r\n")
        assert b" 413 " in await server.all()


async def test_chunk_sizes_without_end_do_not_fill_the_memory() -> None:
    async with serving() as server:
        await server.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        await server.send(b"0" * (limits.MAX_HEADER_BYTES + 2000))
        assert b" 400 " in await server.all()


async def test_a_head_without_end_is_refused_at_its_limit() -> None:
    async with serving() as server:
        await server.send(POST + b"X: " + b"a" * limits.MAX_HEADER_BYTES)
        assert b" 431 " in await server.all()


async def test_a_client_that_waits_for_the_go_ahead_gets_it() -> None:
    async with serving() as server:
        await server.send(POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        await server.until(b"100 ")
        await server.send(b"abc")
        assert b"got abc" in await server.until(b"got abc")


async def test_a_head_that_does_not_come_in_ten_seconds_is_refused(autojump_clock: MockClock) -> None:
    async with serving() as server:
        began = trio.current_time()
        await server.send(POST)
        assert b" 408 " in await server.all()
        assert trio.current_time() - began < limits.HEADER_SECONDS + 2


async def test_a_body_that_does_not_come_is_refused(autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()

    async def handler(exchange: Exchange) -> None:
        await exchange.read_body(seconds=5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_http, theirs, handler, _refusal)
        await ours.send_all(POST + b"Content-Length: 3\r\n\r\na")
        assert b" 408 " in await Server(ours).all()


async def test_an_idle_connection_is_closed_without_a_word(autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_http, theirs, _never, _refusal)
        assert await Server(ours).all() == b""


async def test_a_client_that_reads_nothing_is_given_up(autojump_clock: MockClock) -> None:
    """Also the road not taken: a send without a deadline would keep the request, and its provider's, for ever."""
    ended = trio.Event()

    class Stuck(trio.abc.Stream):
        def __init__(self) -> None:
            self.left = POST + b"Content-Length: 0\r\n\r\n"

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            await trio.lowlevel.checkpoint()
            data, self.left = self.left, b""
            if not data:
                await trio.sleep_forever()
            return data

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            await trio.sleep_forever()

        async def wait_send_all_might_not_block(self) -> None:
            await trio.lowlevel.checkpoint()

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    async def handler(exchange: Exchange) -> None:
        await exchange.read_body()
        try:
            await exchange.start(200, JSON)
        except ClientGone:
            ended.set()
            raise

    began = trio.current_time()
    await serve_http(Stuck(), handler, _refusal)
    assert ended.is_set()
    assert trio.current_time() - began <= http1.SEND_SECONDS + 1


async def test_hanging_up_is_noticed_while_the_answer_is_made() -> None:
    ours, theirs = memory_stream_pair()
    noticed = trio.Event()

    async def handler(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.start(200, JSON)
        await exchange.watch(noticed.set)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_http, theirs, handler, _refusal)
            await ours.send_all(POST + b"Content-Length: 0\r\n\r\n")
            await ours.receive_some()
            await ours.aclose()
            await noticed.wait()


async def test_bytes_sent_into_an_answer_end_the_connection_after_it() -> None:
    ours, theirs = memory_stream_pair()
    meanwhile = trio.Event()

    async def handler(exchange: Exchange) -> None:
        await exchange.read_body()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exchange.watch, lambda: None)
            await exchange.start(200, JSON)
            await meanwhile.wait()
            await exchange.send(b"x")
            await exchange.finish()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_http, theirs, handler, _refusal)
            await ours.send_all(POST + b"Content-Length: 0\r\n\r\n")
            await ours.receive_some()
            await ours.send_all(POST + b"Content-Length: 0\r\n\r\n")
            await trio.testing.wait_all_tasks_blocked()
            meanwhile.set()
            answer = await Server(ours).all()
    assert answer == b"1\r\nx\r\n0\r\n\r\n"


async def test_an_answer_that_is_not_finished_ends_without_its_last_chunk() -> None:
    ours, theirs = memory_stream_pair()

    async def handler(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.start(200, JSON)
        await exchange.send(b"half")

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_http, theirs, handler, _refusal)
            await ours.send_all(POST + b"Content-Length: 0\r\n\r\n")
            answer = await Server(ours).all()
    assert answer.endswith(b"4\r\nhalf\r\n")


async def test_memory_is_asked_for_before_it_is_used() -> None:
    ours, theirs = memory_stream_pair()
    reserved: list[int] = []

    async def handler(exchange: Exchange) -> None:
        body = await exchange.read_body(reserve=reserved.append)
        await exchange.answer(200, JSON, body)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_http, theirs, handler, _refusal)
            server = Server(ours)
            await server.send(POST + b"Content-Length: 3\r\n\r\n")
            await trio.testing.wait_all_tasks_blocked()
            assert reserved == [3]
            await server.send(b"abc")
            await server.until(b"abc")
            await server.send(POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n")
            await server.until(b"\r\n\r\nab")
            await ours.aclose()
    assert reserved == [3, 2]


async def _never(exchange: Exchange) -> None:
    raise AssertionError("there was no request")
