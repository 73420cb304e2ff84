"""A real relay: the processes it supervises, the commands it runs, and what is killed with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from oubliette.container.link import RelayLink
from oubliette.errors import ContainerError
from tests.relay.harness import (
    ENV,
    MARK,
    PATIENCE,
    PYTHON,
    RELAY,
    alive,
    connected,
    parent_of,
    pid_from,
    read_all,
    relay_process,
    server,
    until,
)


async def start(link: RelayLink, script: str, *, tag: str = "1", name: str = "agent") -> None:
    await link.start_process(name, ["sh", "-c", script], ENV, "/", tag=tag)


async def test_an_exit_is_reported_with_its_code_and_its_last_words(tmp_path: Path) -> None:
    async with connected(tmp_path) as (link, _):
        with trio.fail_after(PATIENCE):
            await start(link, "i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo line $i >&2; done; echo end >&2; exit 7")
            end = await link.exits.receive()
        assert (end.name, end.tag, end.code, end.signal) == ("agent", "1", 7, 0)
        assert end.stderr_tail.splitlines() == [f"line {number}" for number in range(12, 61)] + ["end"]


async def test_a_death_by_signal_is_told_from_an_exit(tmp_path: Path) -> None:
    async with connected(tmp_path) as (link, _):
        with trio.fail_after(PATIENCE):
            await start(link, "kill -9 $$")
            end = await link.exits.receive()
        assert (end.code, end.signal) == (0, 9)


async def test_starting_the_same_twice_is_one_and_another_is_refused(tmp_path: Path) -> None:
    async with connected(tmp_path) as (link, _):
        with trio.fail_after(PATIENCE):
            await start(link, "exec sleep 600", tag="a")
            await start(link, "exec sleep 600", tag="a")
            with pytest.raises(ContainerError, match="runs already"):
                await start(link, "exec sleep 600", tag="b")
            (state,) = await link.list_processes()
            assert (state.tag, state.serial, state.running) == ("a", 1, True)
            await link.stop_process("agent", 5)
            await start(link, "exec sleep 600", tag="b")
            (state,) = await link.list_processes()
            assert (state.tag, state.serial) == ("b", 2)


async def test_what_cannot_be_started_is_said(tmp_path: Path) -> None:
    async with connected(tmp_path) as (link, _):
        with trio.fail_after(PATIENCE):
            with pytest.raises(ContainerError, match="/no/such/program: No such file"):
                await link.start_process("agent", ["/no/such/program"], ENV, "/")
            with pytest.raises(ContainerError, match="No such file"):
                await link.exec(["true"], env=ENV, cwd="/no/such/place")
            with pytest.raises(ContainerError, match="no command"):
                await link.exec([], env=ENV)
            assert await link.list_processes() == ()


async def test_at_most_eight_processes_are_supervised_and_ended_ones_make_room(tmp_path: Path) -> None:
    async with connected(tmp_path) as (link, _):
        with trio.fail_after(PATIENCE):
            for number in range(8):
                await start(link, "exec sleep 600", name=f"p{number}")
            with pytest.raises(ContainerError, match="8 processes"):
                await start(link, "exec sleep 600", name="p8")
            await link.stop_process("p3", 5)
            await start(link, "exec sleep 600", name="p8")


async def test_stopping_asks_first_and_kills_after_the_grace(tmp_path: Path) -> None:
    async with connected(tmp_path) as (link, _):
        with trio.fail_after(PATIENCE):
            await start(link, "trap 'echo asked >&2; exit 3' TERM; echo up >&2; while :; do sleep 0.01; done")
            await until_it_says(link, "up")
            await link.stop_process("agent", 10)
            assert (await link.exits.receive()).code == 3
            await start(link, "trap '' TERM; echo up >&2; while :; do sleep 0.01; done")
            await until_it_says(link, "up")
            await link.stop_process("agent", 0.1)
            assert (await link.exits.receive()).signal == 9
            await link.stop_process("agent", 10)
            await link.stop_process("nobody", 10)


async def until_it_says(link: RelayLink, word: str) -> None:
    while not any(state.running and word in state.stderr for state in await link.list_processes()):
        await trio.sleep(0.01)


async def test_the_heartbeat_tells_how_much_memory_a_process_uses(tmp_path: Path) -> None:
    async with connected(tmp_path) as (link, _):
        with trio.fail_after(PATIENCE):
            script = "x = b'x' * (80 << 20); import time; time.sleep(600)"
            await link.start_process("big", [sys.executable, "-c", script], ENV, "/")
            await until(lambda: (link.memory_bytes("big") or 0) > 80 << 20)
        assert link.memory_bytes("nobody") is None


# --- exec


async def test_a_command_gets_exactly_its_environment_and_its_input(tmp_path: Path) -> None:
    async with connected(tmp_path) as (link, _):
        with trio.fail_after(PATIENCE):
            result = await link.exec(["/usr/bin/env"], env={"A": "1", "B": "caf\u00e9"})
            assert sorted(result.stdout.decode().splitlines()) == ["A=1", "B=caf\u00e9"]
            result = await link.exec(["sh", "-c", "cat; echo oops >&2; exit 4"], env=ENV, stdin=b"hello")
            assert (result.exit_code, result.stdout, result.stderr) == (4, b"hello", b"oops\n")
            result = await link.exec(["pwd"], env=ENV, cwd=str(tmp_path))
            assert result.stdout.decode().strip() == str(tmp_path)
            result = await link.exec(["ls", "/proc/self/fd"], env=ENV)
            assert result.stdout.split() == [b"0", b"1", b"2", b"3"]


async def test_large_input_and_output_pass_and_larger_output_keeps_head_and_tail(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    async with connected(tmp_path) as (link, _):
        with trio.fail_after(PATIENCE):
            result = await link.exec(["cat"], env=ENV, stdin=data, max_output_bytes=4 << 20)
            assert result.stdout == data
            result = await link.exec(["cat"], env=ENV, stdin=data, max_output_bytes=1000)
            assert result.stdout == data[:500] + data[-500:]
            assert result.stdout_bytes == len(data)
            result = await link.exec(["sh", "-c", "exec 0<&-; echo done"], env=ENV, stdin=data)
            assert result.stdout == b"done\n", "a command need not read its input"


async def test_a_time_out_kills_the_whole_group_and_is_a_result(tmp_path: Path) -> None:
    async with connected(tmp_path) as (link, _):
        with trio.fail_after(PATIENCE):
            script = f"sleep 600 & echo $! > {tmp_path}/child; echo begun; wait"
            result = await link.exec(["sh", "-c", script], env=ENV, timeout_seconds=0.3)
            assert (result.timed_out, result.exit_code, result.stdout) == (True, 137, b"begun\n")
            child = await pid_from(tmp_path / "child")
            await until(lambda: not alive(child))


async def test_a_cancelled_exec_is_killed(tmp_path: Path) -> None:
    async with connected(tmp_path) as (link, _):
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:

                async def run() -> None:
                    await link.exec(["sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 600"], env=ENV)

                nursery.start_soon(run)
                pid = await pid_from(tmp_path / "pid")
                nursery.cancel_scope.cancel("the caller has gone")
            await until(lambda: not alive(pid))
            assert link.expected == 0


async def test_a_command_that_leaves_something_in_the_background_ends_all_the_same(tmp_path: Path) -> None:
    async with connected(tmp_path) as (link, _):
        with trio.fail_after(5):
            result = await link.exec(["sh", "-c", f"sleep 600 & echo $! > {tmp_path}/pid; echo done"], env=ENV)
        assert result.stdout == b"done\n"
        pid = await pid_from(tmp_path / "pid")
        assert alive(pid), "what it left is not ours to kill"
        os.kill(pid, signal.SIGKILL)


async def test_more_commands_than_slots_wait_for_each_other(tmp_path: Path) -> None:
    async with connected(tmp_path) as (link, _):
        seen: list[bytes] = []

        async def run(number: int) -> None:
            seen.append((await link.exec(["sh", "-c", f"sleep 0.1; echo {number}"], env=ENV)).stdout)

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for number in range(40):
                    nursery.start_soon(run, number)
        assert sorted(map(int, seen)) == list(range(40))


async def test_orphans_are_reaped(tmp_path: Path) -> None:
    async with connected(tmp_path) as (link, relay):
        with trio.fail_after(PATIENCE):
            await link.exec(["sh", "-c", f"(setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 600' &)"], env=ENV)
            pid = await pid_from(tmp_path / "pid")
            assert parent_of(pid) == relay.pid, "the relay adopts orphans"
            os.kill(pid, signal.SIGKILL)
            await until(lambda: not Path(f"/proc/{pid}").exists())


# --- marks


async def test_a_session_is_killed_with_what_has_left_its_group_and_no_other_is_touched(tmp_path: Path) -> None:
    script = f"setsid nohup sh -c 'echo $$ > {tmp_path}/NAME; exec sleep 600' >/dev/null 2>&1 & sleep 600"
    async with connected(tmp_path) as (link, _):
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:

                async def run(name: str, mark: str) -> None:
                    await link.exec(["sh", "-c", script.replace("NAME", name)], env=ENV, mark=mark)

                nursery.start_soon(run, "one", "ses_1")
                nursery.start_soon(run, "ten", "ses_10")
                one, ten = await pid_from(tmp_path / "one"), await pid_from(tmp_path / "ten")
                assert await link.kill_session("ses_1") >= 3
                assert not alive(one)
                assert alive(ten), "a mark that begins the same is another one"
                assert await link.kill_session("ses_1") == 0
                assert await link.kill_session("ses_10") >= 3
                assert not alive(ten)


async def test_a_marked_process_that_forks_all_the_time_is_killed(tmp_path: Path) -> None:
    script = """
import os, time
if os.fork(): os._exit(0)
os.setsid()
for _ in range(2000):
    if os.fork(): os._exit(0)
    time.sleep(0.002)
"""
    async with connected(tmp_path) as (link, _):
        with trio.fail_after(PATIENCE):
            await link.exec([sys.executable, "-c", script], env=ENV, mark="fork")
            await link.kill_session("fork")
            assert not _carriers("fork")


async def test_descendants_that_have_dropped_the_mark_go_with_those_that_carry_it(tmp_path: Path) -> None:
    script = f"env -i sh -c 'echo $$ > {tmp_path}/bare; while :; do /bin/sleep 1; done' & wait"
    async with connected(tmp_path) as (link, _):
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:

                async def run() -> None:
                    await link.exec(["sh", "-c", script], env=ENV, mark="m")

                nursery.start_soon(run)
                bare = await pid_from(tmp_path / "bare")
                await link.kill_session("m")
                assert not alive(bare)


async def test_when_the_agent_is_killed_its_tools_are_gone_before_its_exit_is_reported(tmp_path: Path) -> None:
    tool = f"{MARK}=ses_9 setsid nohup sh -c 'echo $$ > {tmp_path}/tool; exec sleep 600' >/dev/null 2>&1 &"
    agent = f"{tool} echo $$ > {tmp_path}/agent; exec sleep 600"
    async with connected(tmp_path) as (link, _):
        with trio.fail_after(PATIENCE):
            await start(link, agent)
            pid, tool_pid = await pid_from(tmp_path / "agent"), await pid_from(tmp_path / "tool")
            os.kill(pid, signal.SIGKILL)
            end = await link.exits.receive()
            assert not alive(tool_pid)
            assert (end.signal, end.left) == (9, 0)


# --- the relay's own end


async def test_sigterm_stops_everything_and_exits_0(tmp_path: Path) -> None:
    async with connected(tmp_path) as (link, relay):
        with trio.fail_after(PATIENCE):
            marked = f"{MARK}=s setsid sh -c 'echo $$ > {tmp_path}/tool; exec sleep 600' &"
            await start(link, f"{marked} trap '' TERM; echo $$ > {tmp_path}/agent; while :; do sleep 0.05; done")
            pids = [await pid_from(tmp_path / name) for name in ("tool", "agent")]
            relay.terminate()
            await until(lambda: relay.poll() is not None)
        assert relay.returncode == 0
        assert not any(alive(pid) for pid in pids)


def test_it_runs_by_its_path_alone_as_in_a_container(tmp_path: Path) -> None:
    command = [PYTHON, "-ISB", str(RELAY), "--help"]
    done = subprocess.run(command, env={}, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert "--model-port" in done.stdout


async def test_a_model_port_that_is_taken_is_said_at_once(tmp_path: Path) -> None:
    async with server(read_all) as port:
        with relay_process(tmp_path, "--model-port", str(port)) as relay:
            await until(lambda: relay.poll() is not None)
    assert relay.returncode == 1
    assert f"127.0.0.1:{port} cannot be had" in (tmp_path / "relay.log").read_text()


def _carriers(mark: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found
