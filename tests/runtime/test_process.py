"""Running programs of the host: environment, bounds, and nothing left behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from oubliette.errors import EngineError, RuntimeUnavailable
from oubliette.runtime.process import HeadTail, run

ENV = {"PATH": "/usr/bin:/bin"}


def alive(pid: int) -> bool:
    """A zombie counts as gone: nothing of it runs, and only its parent can reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def eventually(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.01)


async def gone(pid: int) -> None:
    await eventually(lambda: not alive(pid))


def written_pid(path: Path) -> int:
    """0 while there is none."""
    return int((path.read_text() if path.exists() else "").strip() or 0)


async def read_pid(path: Path) -> int:
    await eventually(lambda: written_pid(path) != 0)
    return written_pid(path)


async def test_a_program_gets_exactly_the_given_environment_and_three_descriptors() -> None:
    extra = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(extra, True)
    try:
        script = "import os; print(sorted(os.environ), sorted(os.listdir('/proc/self/fd'), key=int)[:3])"
        script += f"; print(os.path.exists('/proc/self/fd/{extra}')); print(os.getsid(0) == os.getpid())"
        done = await run(["/usr/bin/python3", "-I", "-c", script], env={"A": "1"}, timeout_seconds=20)
    finally:
        os.close(extra)
    first, second, third = done.stdout.decode().splitlines()
    assert "'A'" in first and "HOME" not in first and "PATH" not in first
    assert second == "False"
    assert third == "True", "it leads a session of its own: the whole of it can be killed"


async def test_stdin_stdout_stderr_and_exit_code_come_back() -> None:
    done = await run(["sh", "-c", "cat; echo bad >&2; exit 3"], env=ENV, stdin=b"in", timeout_seconds=20)
    assert (done.exit_code, done.stdout, done.stderr, done.timed_out) == (3, b"in", b"bad\n", False)
    assert (done.stdout_bytes, done.stderr_bytes) == (2, 4)


async def test_output_over_the_cap_keeps_head_and_tail_and_counts_all() -> None:
    script = "import sys; sys.stdout.write('a'*500000 + 'b'*500000)"
    done = await run([sys.executable, "-I", "-c", script], env={}, timeout_seconds=20, max_output_bytes=1001)
    assert done.stdout == b"a" * 501 + b"b" * 500
    assert done.stdout_bytes == 1_000_000


def test_head_and_tail_are_the_ends_of_the_stream_however_it_is_cut() -> None:
    data = bytes(range(256)) * 40
    for cap in (0, 1, 2, 7, 100, 9999, 10240, 20000):
        for step in (1, 3, 64, 5000, 20000):
            keep = HeadTail(cap)
            for at in range(0, len(data), step):
                keep.feed(data[at : at + step])
            expected = data if len(data) <= cap else data[: cap - cap // 2] + data[len(data) - cap // 2 :]
            assert keep.kept() == expected
            assert keep.total == len(data)


async def test_a_program_that_does_not_read_its_stdin_is_no_error() -> None:
    done = await run(["true"], env=ENV, stdin=b"x" * 1_000_000, timeout_seconds=20)
    assert done.exit_code == 0


async def test_a_time_out_kills_the_whole_group_and_is_a_result(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"trap '' TERM; sleep 600 & echo $! > {pid_file}; echo started; wait; sleep 600"
    with trio.fail_after(10):
        done = await run(["bash", "-c", script], env=ENV, timeout_seconds=0.5)
    assert done.timed_out
    assert done.exit_code == 137
    assert done.stdout == b"started\n"
    await gone(await read_pid(pid_file))


async def test_cancelling_kills_the_whole_group_at_once(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"trap '' TERM; sleep 600 & echo $! > {pid_file}; wait; sleep 600"
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def started() -> None:
                await run(["bash", "-c", script], env=ENV, timeout_seconds=600)

            nursery.start_soon(started)
            pid = await read_pid(pid_file)
            began = trio.current_time()
            nursery.cancel_scope.cancel()
    assert trio.current_time() - began < 2
    await gone(pid)


async def test_what_a_program_left_in_its_group_does_not_outlive_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with trio.fail_after(10):
        done = await run(["bash", "-c", f"sleep 600 & echo $! > {pid_file}; exit 0"], env=ENV, timeout_seconds=600)
    assert done.exit_code == 0
    await gone(await read_pid(pid_file))


async def test_a_stranger_that_holds_the_pipe_delays_the_result_by_a_second_at_most(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with trio.fail_after(8):
        done = await run(
            ["bash", "-c", f"setsid sleep 600 & echo $! > {pid_file}; echo done"], env=ENV, timeout_seconds=600
        )
    assert done.stdout == b"done\n"
    pid = await read_pid(pid_file)
    if alive(pid):
        os.kill(pid, 9)


async def test_a_missing_program_is_a_container_error_that_names_it() -> None:
    with pytest.raises(RuntimeUnavailable, match="no-such-program"):
        await run(["no-such-program"], env=ENV, timeout_seconds=5)
    with pytest.raises(RuntimeUnavailable, match="cannot be started"):
        await run(["/etc/passwd"], env=ENV, timeout_seconds=5)
    with pytest.raises(EngineError, match="does not exist"):
        await run(["true"], env=ENV, cwd="/no/such/directory", timeout_seconds=5)


async def test_root_can_run_a_program_as_another_user_without_any_group() -> None:
    done = await run(["sh", "-c", "id -u; id -g; id -G"], env=ENV, timeout_seconds=20, uid=10001, gid=10001)
    assert done.stdout == b"10001\n10001\n10001\n"


async def test_cancelled_at_every_checkpoint_no_process_and_no_descriptor_stays() -> None:
    mark = f"86399.{os.getpid()}"
    await run(["true"], env=ENV, timeout_seconds=5)
    before = len(os.listdir("/proc/self/fd"))
    for step in range(1, 12):
        with trio.CancelScope() as scope:
            counter = _CancelAt(step, scope)
            trio.lowlevel.add_instrument(counter)
            try:
                await run(["sh", "-c", f"sleep {mark} & sleep {mark}"], env=ENV, timeout_seconds=0.3)
            finally:
                trio.lowlevel.remove_instrument(counter)
    await eventually(lambda: not any(mark in command for command in _commands()))
    assert len(os.listdir("/proc/self/fd")) == before


class _CancelAt(trio.abc.Instrument):
    """Cancels the scope when the current task has been stepped ``count`` times."""

    def __init__(self, count: int, scope: trio.CancelScope) -> None:
        self._left = count
        self._scope = scope
        self._task = trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


def _commands() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found
