"""Streaming without buffering, and every way a request can be ended or refused for its size or number."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from oubliette.core import limits
from oubliette.gateway import places
from oubliette.gateway.models import Wire
from oubliette.gateway.places import MAX_REQUESTS
from oubliette.gateway.upstream import UpstreamAnswer, UpstreamCut, Upstreams
from oubliette.store import sessions
from tests.gateway.world import CAPABILITY, WIRES, World, add_session, open_world, request_body, sdk_headers
from tests.sweep import Check, Cut, Operation, cancel_sweep


@asynccontextmanager
async def streaming(
    world: World, wire: Wire, prompt: str, *, session: str = "ses_1", alias: str | None = None
) -> AsyncIterator[UpstreamAnswer]:
    """An answer whose body has not been read yet."""
    headers = [*sdk_headers(wire, session=session).items(), ("content-type", "application/json")]
    body = json.dumps(request_body(wire, prompt, alias=alias)).encode()
    async with Upstreams().post(world.url(wire, alias=alias), headers, body, alias="the gateway") as answer:
        yield answer


async def ask_and_forget(world: World, wire: Wire, prompt: str = "@say hello", *, alias: str | None = None) -> None:
    """A request that may be cancelled at any time, which httpx's generators complain about."""
    with suppress(UpstreamCut):
        async with streaming(world, wire, prompt, alias=alias) as answer:
            await rest(answer)


async def rest(answer: UpstreamAnswer) -> bytes:
    """Everything until the end."""
    text = b""
    while piece := await answer.receive():
        text += piece
    return text


def open_sockets() -> int:
    """Sockets of this process. Not all descriptors: a reader of the store opens its files when it is first used."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return found


async def until(condition: object, seconds: float = 5) -> None:
    """Wait for something that no event tells of."""
    assert callable(condition)
    with trio.fail_after(seconds):
        while not condition():  # another task of ours gets there without telling anybody
            await trio.sleep(0.005)


@pytest.mark.parametrize("wire", WIRES)
async def test_the_first_byte_leaves_before_the_second_arrives(world: World, wire: Wire) -> None:
    gates = [trio.Event() for _ in range(40)]
    world.provider.gates.extend(gates)
    gates[0].set()
    with trio.fail_after(10):
        async with streaming(world, wire, "@say hello") as answer:
            first = await answer.receive()
            assert first.endswith(b"\n\n")
            assert first.count(b"data: ") == 1
            world.provider.gates.clear()
            for gate in gates:
                gate.set()
            assert await rest(answer)


async def test_the_scripted_model_streams_too(world: World) -> None:
    began = trio.current_time()
    with trio.fail_after(10):
        async with streaming(world, Wire.CHAT, "@say one\n@delay 0.5\n@say two", alias="scripted") as answer:
            text = b""
            while piece := await answer.receive():
                text += piece
                if b"one" in text and b"two" not in text:
                    assert trio.current_time() - began < 0.45
    assert b"two" in text
    assert trio.current_time() - began > 0.45


@pytest.mark.parametrize("wire", WIRES)
async def test_a_client_that_leaves_ends_the_request_at_the_provider(world: World, wire: Wire) -> None:
    with trio.fail_after(10):
        async with streaming(world, wire, "@say one\n@delay 30\n@say two") as answer:
            await answer.receive()
        await until(lambda: world.provider.closed_early == 1 and not world.gateway.requests_at_work())
        await world.gateway.settled("gogol_1")
    [row] = await world.rows()
    assert row["error"] == "client gone"
    assert row["cost_complete"] == 0


async def test_a_client_that_leaves_before_the_answer_begins_ends_it_too(world: World) -> None:
    world.provider.gates.append(trio.Event())
    with trio.move_on_after(0.3):
        await ask_and_forget(world, Wire.OPENAI)
    await until(lambda: not world.gateway.requests_at_work() and world.provider.at_work == 0)


async def test_the_seventeenth_request_at_once_is_told_to_come_back(world: World) -> None:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for _ in range(MAX_REQUESTS):
                nursery.start_soon(partial(ask_and_forget, world, Wire.CHAT, "@say a\n@delay 30", alias="scripted"))
            await until(lambda: world.gateway.requests_at_work("c1") == MAX_REQUESTS)
            for wire in WIRES:
                answer = await world.ask(wire)
                assert answer.status_code == 429
                assert int(answer.headers["retry-after"]) >= 1
                assert str(MAX_REQUESTS) in answer.json()["error"]["message"]
            world.gateway.cancel_session("gogol_1")
            nursery.cancel_scope.cancel()
        await until(lambda: not world.gateway.requests_at_work())
        assert (await world.ask(Wire.CHAT)).status_code == 200


@pytest.mark.parametrize("wire", WIRES)
async def test_cancelling_a_session_cuts_its_answers_at_once(world: World, wire: Wire) -> None:
    with trio.fail_after(10):
        async with streaming(world, wire, "@say one\n@delay 30\n@say two") as answer:
            await answer.receive()
            world.gateway.cancel_session("gogol_1", "its turn was interrupted")
            with pytest.raises(UpstreamCut):
                await rest(answer)
        await world.gateway.settled("gogol_1")
        await until(lambda: world.provider.at_work == 0)
    [row] = await world.rows()
    assert row["error"] == "its turn was interrupted"
    assert (await world.ask(wire)).status_code == 200, "only an ending session is refused from then on"


async def test_cancelling_one_session_leaves_the_others_alone(world: World) -> None:
    await world.store.write(partial(add_session, session_id="gogol_2", agent_session_id="ses_2"))
    with trio.fail_after(10):
        async with streaming(world, Wire.CHAT, "@say one\n@delay 0.3\n@say two", session="ses_2") as answer:
            await answer.receive()
            world.gateway.cancel_session("gogol_1")
            assert b"two" in await rest(answer)


async def test_a_request_in_the_middle_of_its_admission_is_cut_as_well(world: World) -> None:
    """It read the session's row before the cut and would begin after it."""
    reading, go_on = trio.Event(), trio.Event()
    admit = world.meter.admit

    async def slow_admit(*args: object, **more: object) -> object:
        ticket = await admit(*args, **more)  # type: ignore[arg-type]
        reading.set()
        await go_on.wait()
        return ticket

    world.meter.admit = slow_admit  # type: ignore[method-assign,assignment]
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                answer = await world.ask(Wire.ANTHROPIC)
                assert answer.status_code == 403
                assert "ended" in answer.json()["error"]["message"]

            nursery.start_soon(ask)
            await reading.wait()
            world.gateway.cancel_session("gogol_1")
            go_on.set()
    assert not world.provider.asked


async def test_an_ending_session_is_refused_without_asking_anybody(world: World) -> None:
    await world.store.write(lambda tx: sessions.update(tx, "gogol_1", ending="cancelled"))
    for wire in WIRES:
        answer = await world.ask(wire)
        assert answer.status_code == 403
        assert "ended" in answer.json()["error"]["message"]
    assert not world.provider.asked


async def test_a_body_over_the_limit_is_refused_unread(world: World) -> None:
    head = (
        f"POST /anthropic/v1/messages HTTP/1.1\r\nHost: h\r\nx-api-key: {CAPABILITY}\r\n"
        f"Content-Length: {limits.MAX_BODY_BYTES + 1}\r\n\r\n"
    )
    with trio.fail_after(5):
        stream = await trio.open_tcp_stream("127.0.0.1", world.port)
        async with stream:
            await stream.send_all(head.encode())
            answer = b"".join([piece async for piece in stream])
    assert b" 413 " in answer
    assert b"request_too_large" in answer


async def test_bodies_of_one_container_are_bounded_together(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_BODY_BYTES_AT_ONCE", 5000)
    head = f"POST /anthropic/v1/messages HTTP/1.1\r\nHost: h\r\nx-api-key: {CAPABILITY}\r\nContent-Length: 4000\r\n\r\n"
    with trio.fail_after(5):
        first = await trio.open_tcp_stream("127.0.0.1", world.port)
        async with first:
            await first.send_all(head.encode())
            await until(lambda: world.gateway.requests_at_work() == 1)
            answer = await world.ask(Wire.ANTHROPIC, "x" * 4000)
            assert answer.status_code == 429
        await until(lambda: not world.gateway.requests_at_work())
        assert (await world.ask(Wire.ANTHROPIC, "x" * 4000)).status_code == 200


async def test_smuggled_requests_reach_nobody(world: World) -> None:
    inner = json.dumps(request_body(Wire.ANTHROPIC, "@say hidden")).encode()
    key = f"x-api-key: {CAPABILITY}\r\ncontent-type: application/json\r\n".encode()
    head = b"POST /anthropic/v1/messages HTTP/1.1\r\nHost: h\r\n" + key
    plain = head + b"Content-Length: %d\r\n\r\n" % len(inner) + inner
    attacks = [
        head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + plain,
        plain + plain,
        head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + plain,
        head + b"X: y\r\n z\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner,
        head + b"Content-Length: %d\r\nContent-Length: 0\r\n\r\n" % len(inner) + inner,
    ]
    for attack in attacks:
        with trio.fail_after(5):
            stream = await trio.open_tcp_stream("127.0.0.1", world.port)
            async with stream:
                await stream.send_all(attack)
                answer = b"".join([piece async for piece in stream])
        assert b"HTTP/1.1 400" in answer
        assert answer.count(b"HTTP/1.1 ") == 1
    assert not world.provider.asked


async def test_a_hundred_cut_requests_leave_nothing_behind(world: World) -> None:
    """Cancelled httpx requests leak slots of a shared pool; a transport of its own for each call leaves nothing."""
    await world.ask(Wire.CHAT)
    await until(lambda: not world.gateway.requests_at_work() and not world.provider.at_work)
    before = open_sockets()

    async def one(number: int) -> None:
        with trio.move_on_after(0.001 * number):
            await ask_and_forget(world, Wire.CHAT, "@say a\n@delay 0.05\n@say b")

    with trio.fail_after(30):
        for round_number in range(5):
            async with trio.open_nursery() as nursery:
                for number in range(16):
                    nursery.start_soon(one, round_number * 16 + number)
        await until(lambda: not world.gateway.requests_at_work() and world.provider.at_work == 0)
        await until(lambda: open_sockets() <= before)
    assert not world.gateway._running
    assert (await world.ask(Wire.CHAT)).status_code == 200


async def test_a_container_that_is_gone_is_not_served(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        ours, theirs = trio.testing.memory_stream_pair()
        with trio.fail_after(5):
            await world.gateway.serve_model(theirs, "c9")
            assert await ours.receive_some() == b""


@pytest.mark.parametrize("wire", [Wire.ANTHROPIC, Wire.CHAT])
async def test_a_request_cancelled_at_any_step_leaves_nothing_running_and_nothing_unpaid(
    world: World, wire: Wire
) -> None:
    """The whole way: head, body, admission, connection, answer, settlement."""
    await world.ask(wire)
    await until(lambda: not world.gateway.requests_at_work() and not world.provider.at_work)
    before = open_sockets()
    body = json.dumps(request_body(wire, "@say hello")).encode()
    headers = "".join(f"{name}: {value}\r\n" for name, value in sdk_headers(wire).items())
    path = world.url(wire).partition(str(world.port))[2]
    request = f"POST {path} HTTP/1.1\r\nHost: h\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body

    @asynccontextmanager
    async def subject() -> AsyncIterator[tuple[Operation, Check]]:
        ours, theirs = trio.testing.memory_stream_pair()
        await ours.send_all(request)
        asked, rows = len(world.provider.asked), len(await world.rows())

        async def read_and_hang_up() -> None:
            answer = b""
            while piece := await ours.receive_some():
                answer += piece
                if answer.endswith(b"0\r\n\r\n"):
                    break
            await ours.aclose()

        async def operation() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_and_hang_up)
                await world.gateway.serve_model(theirs, "c1")

        async def check(cut: Cut) -> None:
            assert not world.gateway.requests_at_work()
            assert not world.gateway._running
            # The other end of the connection hears of it from the kernel.
            await until(lambda: not world.provider.at_work and open_sockets() <= before)
            written = len(await world.rows()) - rows
            assert written == 1 or len(world.provider.asked) == asked, "what a provider was asked has a row"

        yield operation, check
        await trio.aclose_forcefully(ours)

    assert await cancel_sweep(subject) > 20
