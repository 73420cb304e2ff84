"""A real relay and a daemon that goes, comes back, or talks nonsense: what runs inside goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oubliette.errors import ContainerError
from oubliette.relay_host import RelayHost
from oubliette_relay import protocol
from oubliette_relay.protocol import HelloReader, LineSplitter
from tests.relay.harness import ENV, PATIENCE, alive, connected, echo, pid_from, relay_process, server, until


async def test_a_restarted_daemon_finds_the_same_processes_again(tmp_path: Path) -> None:
    host = RelayHost(serve_model=echo)
    with relay_process(tmp_path):
        async with host.listen("c1", tmp_path) as link:
            with trio.fail_after(PATIENCE):
                await link.start_process("agent", ["sleep", "600"], ENV, "/", tag="one")
                (before,) = await link.list_processes()
        assert not (tmp_path / "relay.sock").exists()
        with pytest.raises(ContainerError, match="nobody listens"):
            await link.list_processes()
        async with host.listen("c1", tmp_path) as link:
            with trio.fail_after(PATIENCE):
                assert await link.list_processes() == (before,)
                await link.stop_process("agent", 5)


async def test_an_exit_that_nobody_could_be_told_of_is_told_to_the_next_daemon_once(tmp_path: Path) -> None:
    host = RelayHost(serve_model=echo)
    with relay_process(tmp_path):
        async with host.listen("c1", tmp_path) as link:
            with trio.fail_after(PATIENCE):
                script = f"echo $$ > {tmp_path}/pid; echo last words >&2; exec sleep 600"
                await link.start_process("agent", ["sh", "-c", script], ENV, "/", tag="one")
                pid = await pid_from(tmp_path / "pid")
        os.kill(pid, signal.SIGTERM)
        await until(lambda: not alive(pid))
        async with host.listen("c1", tmp_path) as link:
            with trio.fail_after(PATIENCE):
                end = await link.exits.receive()
                assert (end.name, end.tag, end.signal, end.stderr_tail) == ("agent", "one", 15, "last words")
                await link.list_processes()
                with pytest.raises(trio.WouldBlock):
                    link.exits.receive_nowait()


async def test_a_broken_control_connection_is_replaced_and_questions_are_asked_again(tmp_path: Path) -> None:
    """The relay is stopped while it is asked, its connection is cut, and it is let go on."""
    async with connected(tmp_path) as (link, relay):
        with trio.fail_after(PATIENCE):
            os.kill(relay.pid, signal.SIGSTOP)
            answers: list[object] = []

            async def ask() -> None:
                answers.append(await link.list_processes())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                nursery.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
                link.drop("a test")
                await link.wait_disconnected()
                os.kill(relay.pid, signal.SIGCONT)
            assert answers == [(), ()]


async def test_a_daemon_that_vanishes_ends_its_commands_and_streams_but_not_the_agent(tmp_path: Path) -> None:
    host = RelayHost(serve_model=echo)
    inside = trio.Event()

    async def hold(stream: trio.SocketStream) -> None:
        async for _ in stream:
            pass
        inside.set()

    with relay_process(tmp_path):
        async with server(hold) as port:
            with trio.fail_after(PATIENCE), trio.CancelScope() as daemon:
                async with host.listen("c1", tmp_path) as link, trio.open_nursery() as nursery:

                    async def run(link: object = link) -> None:
                        await link.exec(["sh", "-c", f"echo $$ > {tmp_path}/exec; exec sleep 600"], env=ENV)  # type: ignore[attr-defined]

                    nursery.start_soon(run)
                    async with link.dial(port):
                        script = f"echo $$ > {tmp_path}/agent; exec sleep 600"
                        await link.start_process("agent", ["sh", "-c", script], ENV, "/")
                        command, agent = await pid_from(tmp_path / "exec"), await pid_from(tmp_path / "agent")
                        daemon.cancel("killed")
                        await trio.lowlevel.checkpoint()
            with trio.fail_after(PATIENCE):
                await inside.wait()
                await until(lambda: not alive(command))
            assert alive(agent)


async def _fake_daemon(directory: Path, replies: list[bytes]) -> None:
    """Says one of the replies on each control connection and ends it; other connections are closed at once."""
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(directory / "relay.sock"))
    sock.listen(10)
    left = list(replies)
    try:
        while left:
            accepted, _ = await sock.accept()
            async with trio.SocketStream(accepted) as stream:
                reader = HelloReader()
                found = None
                while found is None:
                    found = reader.feed(await stream.receive_some(4096))
                if found[0].kind != "control":
                    continue
                try:
                    await stream.send_all(left.pop(0))
                    await stream.send_eof()
                    async for _ in stream:
                        pass
                except trio.BrokenResourceError:
                    continue
    finally:
        sock.close()
        (directory / "relay.sock").unlink()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(replies=st.lists(st.binary(max_size=300), min_size=1, max_size=2))
async def test_garbage_from_the_daemon_ends_that_connection_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, replies: list[bytes]
) -> None:
    directory = tmp_path_factory.mktemp("garbage")
    with relay_process(directory) as relay, trio.fail_after(PATIENCE):
        await _fake_daemon(directory, replies)
        async with RelayHost(serve_model=echo).listen("c1", directory) as link:
            assert (await link.exec(["echo", "well"], env=ENV)).stdout == b"well\n"
        assert relay.poll() is None


async def test_chosen_nonsense_from_the_daemon_is_survived(tmp_path: Path) -> None:
    exec_ = protocol.Exec("e" * 24, ("sleep", "600"), {}, "/", 1e11, 1 << 50, stdin_bytes=1 << 50)
    replies = [
        b"x" * (protocol.LINE_BYTES + 10),
        b"[" * 100_000 + b"\n",
        b'{"op":"dial","id":"","port":-5}\n{"op":"dial","id":"1","port":99999999}\n',
        b'{"op":"start","id":"1","name":"","argv":[],"env":{},"cwd":"","tag":"","sweep":true}\n',
        b'{"op":"stop","id":"1","name":"agent","grace_seconds":-1e11}\n{"op":"kill_session","id":"1","mark":""}\n',
        protocol.encode(exec_) * 40,
        b"".join(protocol.encode(protocol.Dial(f"{number}", 1)) for number in range(2000)),
        b"".join(protocol.encode(protocol.ListProcesses(f"{number}")) for number in range(2000)),
    ]
    with relay_process(tmp_path) as relay, trio.fail_after(60):
        await _fake_daemon(tmp_path, replies)
        async with RelayHost(serve_model=echo).listen("c1", tmp_path) as link:
            assert await link.list_processes() == ()
            assert (await link.exec(["echo", "well"], env=ENV)).stdout == b"well\n"
        assert relay.poll() is None


async def test_answers_of_a_relay_are_told_apart_while_many_are_asked(tmp_path: Path) -> None:
    async with connected(tmp_path) as (link, _):
        found: dict[int, bytes] = {}

        async def run(number: int) -> None:
            found[number] = (await link.exec(["echo", str(number)], env=ENV)).stdout

        async def listing() -> None:
            for _ in range(20):
                assert await link.list_processes() == ()

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for number in range(60):
                    nursery.start_soon(run, number)
                nursery.start_soon(listing)
        assert found == {number: f"{number}\n".encode() for number in range(60)}


def test_a_line_splitter_forgets_nothing_between_feeds() -> None:
    lines = LineSplitter()
    assert lines.feed(b"a") == []
    assert lines.feed(b"b\nc") == [b"ab"]
    assert lines.feed(b"\n") == [b"c"]
