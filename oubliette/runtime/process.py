"""Run a program of the host: explicit environment, own session, bounded output, and nothing of it left behind.

``trio.run_process`` does not do: cancelled, it leaves grandchildren running, and it waits 5 s for a child that ignores
SIGTERM (lab: ``run_process_cancel_and_grandchildren``). Here the program leads a new session, and the whole process
group gets SIGKILL when it ends, when its time is up and when the caller is cancelled.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from oubliette.errors import EngineError, RuntimeUnavailable
from oubliette.runtime.base import ExecResult

KILL_SECONDS = 5.0
"""How long a killed program may take to be gone. Longer only happens in uninterruptible sleep."""
DRAIN_SECONDS = 1.0
"""How long output is read on after the program ended: something outside its group may hold the pipe open."""
CHUNK_BYTES = 1 << 16


class HeadTail:
    """Keeps the first and the last half of ``max_bytes`` of a stream, and counts all of it."""

    def __init__(self, max_bytes: int) -> None:
        self.total = 0
        self._tail_max = max(0, max_bytes) // 2
        self._head_max = max(0, max_bytes) - self._tail_max
        self._head = bytearray()
        self._tail = bytearray()

    def feed(self, data: bytes) -> None:
        self.total += len(data)
        room = self._head_max - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * self._tail_max:
            del self._tail[: len(self._tail) - self._tail_max]

    def kept(self) -> bytes:
        """At most ``max_bytes``: everything when it fits, else head and tail with nothing between."""
        return bytes(self._head) + bytes(self._tail[max(0, len(self._tail) - self._tail_max) :])


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | str | None = None,
    stdin: bytes = b"",
    timeout_seconds: float,
    max_output_bytes: int = 1 << 20,
    uid: int | None = None,
    gid: int | None = None,
    keep_background: bool = False,
) -> ExecResult:
    """Run ``argv`` to its end; ``env`` is all of its environment, and also where PATH is looked up.

    A non-zero exit is a result (a signal is ``128 + number``, as shells and engines say it), a time-out is one with
    ``timed_out``. ``max_output_bytes`` holds for stdout and stderr each. ``uid``/``gid`` (together) need root and drop
    the supplementary groups. ``keep_background``: what it leaves behind at an end of its own accord may go on.
    Raises RuntimeUnavailable when the program cannot be started.
    """
    process = await _start(argv, env, cwd, piped_stdin=bool(stdin), uid=uid, gid=gid)
    out, err = HeadTail(max_output_bytes), HeadTail(max_output_bytes)
    timed_out = ended = False
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read, process.stdout, out)
            nursery.start_soon(_read, process.stderr, err)
            if process.stdin is not None:
                nursery.start_soon(_feed, process.stdin, stdin)
            with trio.move_on_after(timeout_seconds) as limit:
                await _ended(process)
            timed_out = limit.cancelled_caught
            if timed_out or not keep_background:
                # Before the leader is reaped, so that the group number cannot have become somebody else's.
                _kill_group(process)
            ended = True
            nursery.cancel_scope.deadline = trio.current_time() + DRAIN_SECONDS
    finally:
        if not (ended and keep_background):
            _kill_group(process)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + KILL_SECONDS):
            await process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                await trio.aclose_forcefully(stream)
    code = process.returncode
    if code is None:
        raise EngineError(f"run {argv[0]}: it is still there {KILL_SECONDS:g} s after SIGKILL")
    exit_code = 128 - code if code < 0 else code
    return ExecResult(exit_code, out.kept(), err.kept(), out.total, err.total, timed_out)


async def _start(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: Path | str | None,
    *,
    piped_stdin: bool,
    uid: int | None,
    gid: int | None,
) -> trio.Process:
    try:
        # The new session also cuts the daemon's terminal off. close_fds is the default and said for the record.
        return await trio.lowlevel.open_process(
            list(argv),
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.PIPE if piped_stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            close_fds=True,
            user=uid,
            group=gid,
            extra_groups=None if uid is None else [],
        )
    except FileNotFoundError as error:
        if cwd is not None and error.filename == os.fspath(cwd):
            raise EngineError(f"run {argv[0]}: the directory {cwd} does not exist") from error
        raise RuntimeUnavailable(f"run {argv[0]}: the program is not installed", hint=f"Install {argv[0]}.") from error
    except OSError as error:
        raise RuntimeUnavailable(f"run {argv[0]}: it cannot be started: {error.strerror}") from error


async def _ended(process: trio.Process) -> None:
    """Return when the program has ended; where the system can tell without reaping it (pidfd), it is not reaped."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # macOS has none, and a sandboxed kernel may refuse it.
        await process.wait()
        return
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


def _kill_group(process: trio.Process) -> None:
    """SIGKILL the process group. Does nothing once the leader is reaped: its number may be another group's by then."""
    if process._proc.returncode is not None:  # noqa: SLF001  (the public property would reap it)
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    except PermissionError:
        # macOS says EPERM for a group of zombies only; elsewhere it means a setuid program, which dies of its pipes.
        return


async def _read(stream: trio.abc.ReceiveStream | None, into: HeadTail) -> None:
    if stream is None:
        return
    while data := await stream.receive_some(CHUNK_BYTES):
        into.feed(bytes(data))


async def _feed(stream: trio.abc.SendStream, data: bytes) -> None:
    try:
        async with stream:
            await stream.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return  # A program may end, or close its stdin, without reading all of it.
