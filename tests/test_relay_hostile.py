"""A hostile inside that keeps to the letter of the relay's wire: how much it can hold, and what it can pretend."""

from __future__ import annotations

from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
import trio

from oubliette.errors import ContainerError
from oubliette.relay_host import CONNECTION_LIMIT
from oubliette_relay import protocol
from oubliette_relay.protocol import Hello, encode_hello
from tests.relay.harness import PATIENCE, echo, until
from tests.test_relay_host import CONTROL, HTTP, closed, dial, listening, pretended_relay, still_serves

MCP = encode_hello(Hello("mcp"))


async def serve_mcp(stream: trio.abc.HalfCloseableStream, _container: str, _caller: str) -> None:
    await echo(stream)


async def _served(stream: trio.SocketStream) -> bool:
    """Whether the daemon answers on it."""
    try:
        await stream.send_all(b"x")
        return await stream.receive_some(1) == b"x"
    except trio.BrokenResourceError:
        return False


async def _refused(directory: Path) -> bool:
    async with await dial(directory, MCP) as stream:
        return not await _served(stream)


async def test_exactly_64_connections_of_every_kind_together_and_each_that_ends_makes_room_for_one(
    tmp_path: Path,
) -> None:
    async with (
        listening(tmp_path, serve_mcp=serve_mcp) as link,
        pretended_relay(tmp_path, link),
        AsyncExitStack() as stack,
    ):
        with trio.fail_after(PATIENCE):
            held = [
                await stack.enter_async_context(await dial(tmp_path, HTTP if number % 2 else MCP))
                for number in range(CONNECTION_LIMIT - 1)
            ]
            for stream in held:
                assert await _served(stream)
            for _ in range(5):
                assert await _refused(tmp_path), "the control connection is one of the 64"
            for _ in range(3):
                await held.pop().aclose()
            again = 0
            while again < 3:
                stream = await stack.enter_async_context(await dial(tmp_path, HTTP))
                again += await _served(stream)
            assert await _refused(tmp_path)
            assert link.connected


async def test_hellos_that_are_never_finished_shut_nobody_out_for_longer_than_they_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HELLO_SECONDS", 2.0)
    async with listening(tmp_path) as link, pretended_relay(tmp_path, link) as control, AsyncExitStack() as stack:
        with trio.fail_after(PATIENCE):
            for number in range(2 * CONNECTION_LIMIT):
                first = (b"", b'{"hello":', b'{"hello":"http"}')[number % 3]
                await stack.enter_async_context(await dial(tmp_path, first))
            assert await _refused(tmp_path), "those before it are all accepted or refused by now"

            async def answer() -> None:
                """A dial of ours gets through all the same: its connection comes on top."""
                line = bytes(await control.receive_some(4096))
                asked = protocol.decode_to_relay(line.strip())
                back = await stack.enter_async_context(await dial(tmp_path, encode_hello(Hello("dialed", id=asked.id))))
                await back.send_all(b"here")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                async with link.dial(80) as through:
                    assert await through.receive_some(4) == b"here"
            while True:
                try:
                    await still_serves(tmp_path)
                    break
                except (AssertionError, trio.BrokenResourceError):
                    await trio.sleep(0.05)
            assert link.connected


async def test_a_guessed_id_gets_no_connection_and_takes_none_from_who_was_asked(tmp_path: Path) -> None:
    async with listening(tmp_path) as link, pretended_relay(tmp_path, link) as control:
        got: list[bytes] = []

        async def ask() -> None:
            async with link.dial(80) as stream:
                got.append(bytes(await stream.receive_some(10)))

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                asked = protocol.decode_to_relay(bytes(await control.receive_some(4096)).strip())
                for guess in ("0" * 24, asked.id[:-1], asked.id + "0", asked.id.upper() + "X", "hello", "1"):
                    assert await closed(await dial(tmp_path, encode_hello(Hello("dialed", id=guess)) + b"forged"))
                right = encode_hello(Hello("dialed", id=asked.id))
                async with await dial(tmp_path, right + b"right") as stream:
                    assert await closed(await dial(tmp_path, right + b"second")), "an id is good once"
                    await until(lambda: bool(got))
                    assert await closed(stream)
                assert await closed(await dial(tmp_path, right + b"late"))
        assert got == [b"right"]
        assert link.expected == 0


async def test_the_first_question_is_not_answered_by_a_connection(tmp_path: Path) -> None:
    """Its id is known to everybody; a connection that claims it must not be kept by nobody."""
    async with listening(tmp_path) as link:
        with trio.fail_after(PATIENCE):
            async with await dial(tmp_path, CONTROL) as control:
                assert b'"op":"list"' in await control.receive_some(4096)
                assert await closed(await dial(tmp_path, encode_hello(Hello("dialed", id="hello"))))
                await control.send_all(protocol.encode(protocol.Processes("hello", ())))
                await link.wait_connected()


async def test_answers_to_questions_that_were_never_asked_change_nothing(tmp_path: Path) -> None:
    async with listening(tmp_path) as link, pretended_relay(tmp_path, link) as control:
        made_up: list[protocol.ToDaemon] = [
            protocol.Processes("hello", ()),
            protocol.Processes("0" * 24, ()),
            protocol.Done("hello"),
            protocol.Failed("1", "busy", "no"),
            protocol.Killed("x", 1 << 40, -1),
        ]
        for message in made_up * 50:
            await control.send_all(protocol.encode(message))
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                asked = protocol.decode_to_relay(bytes(await control.receive_some(4096)).strip())
                await control.send_all(protocol.encode(protocol.Failed(asked.id, "refused", "nobody listens")))

            nursery.start_soon(answer)
            with trio.fail_after(PATIENCE), pytest.raises(ContainerError, match="nobody listens"):
                async with link.dial(80):
                    pass
        assert link.connected


async def test_a_line_of_more_than_1_mib_is_cut_off_before_it_is_whole(tmp_path: Path) -> None:
    async with listening(tmp_path) as link, pretended_relay(tmp_path, link) as control:
        sent = 0
        with trio.fail_after(PATIENCE), suppress(trio.BrokenResourceError):
            while sent < 64 << 20:
                await control.send_all(b"x" * 65536)
                sent += 65536
        assert sent < 16 << 20
        with trio.fail_after(PATIENCE):
            await link.wait_disconnected()
        async with pretended_relay(tmp_path, link):
            assert link.connected
