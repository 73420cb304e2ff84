"""The processes inside: spawning, reaping everything that ends here, and supervising the long-lived ones."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Deque, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from oubliette_relay import protocol
from oubliette_relay.marks import KILL_SECONDS, is_exiting, kill_marked, memory_of
from oubliette_relay.protocol import ProcessState

LINE_CHARACTERS = 1000
"""Of a longer line of a process's stderr only the beginning is kept."""
LAST_WORDS_SECONDS = 0.3
"""After a process has ended: how long others may still write to the pipes that it left."""
_PIECE = 1 << 16
_COPY_BYTES_PER_SECOND = 64 * 1024


class Refused(Exception):
    """An operation that cannot be done; ``code`` is one of ``protocol.Failed``'s."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Child:
    """One process that was started here, leader of its own session and process group."""

    def __init__(self, popen: subprocess.Popen[bytes], ended: asyncio.Future[int]) -> None:
        self.popen = popen
        self.pid = popen.pid
        self.ended = ended
        """The exit code as ``Popen`` spells it: negative for a signal."""

    def signal_group(self, number: int) -> None:
        """To the whole process group. Only while the leader has not been reaped: its number is ours so long."""
        if not self.ended.done():
            try:
                os.killpg(self.pid, number)
            except OSError:
                return


class Reaper:
    """Waits for every child, also for orphans that the kernel hands to us: nothing here stays a zombie."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._children: Dict[int, Child] = {}

    def spawn(
        self, argv: Sequence[str], env: Mapping[str, str], cwd: str, *, stdin: int, stdout: int, stderr: int
    ) -> Child:
        """Start a program with exactly that environment and no descriptor but these three. Raises Refused."""
        if not argv:
            raise Refused("not_started", "no command was given")
        try:
            popen = subprocess.Popen(
                list(argv), env=dict(env), cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise Refused("not_started", f"{argv[0][:200]}: {getattr(error, 'strerror', None) or error}") from error
        child = Child(popen, self._loop.create_future())
        # Reaping happens in this thread too, so a child cannot be missed between its start and this line.
        self._children[child.pid] = child
        return child

    def reap(self) -> None:
        """Collect whatever has ended. Called on SIGCHLD, and now and then in case one was lost."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is not None:
                child.popen.returncode = os.waitstatus_to_exitcode(status)
                if not child.ended.done():
                    child.ended.set_result(child.popen.returncode)

    def children(self) -> List[Child]:
        """All that were started here and have not ended."""
        return list(self._children.values())


class PipeReader:
    """Hands everything that comes out of a pipe to ``take`` and closes it at its end. ``ended`` tells of that."""

    def __init__(self, fd: int, take: Callable[[bytes], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self._take = take
        self.ended: asyncio.Future[None] = self._loop.create_future()
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._readable)

    def close(self) -> None:
        """Read no more. May be called again."""
        if not self.ended.done():
            self.ended.set_result(None)
            self._loop.remove_reader(self._fd)
            os.close(self._fd)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, _PIECE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._take(data)
        else:
            self.close()


class LastLines:
    """The newest lines of a stream, bounded in number and bytes."""

    def __init__(self, copy_to: int = -1) -> None:
        self._lines: Deque[bytes] = deque(maxlen=protocol.STDERR_LINES)
        self._unfinished = b""
        self._copy_to = copy_to
        self._allowance = float(_COPY_BYTES_PER_SECOND)
        self._counted_at = time.monotonic()

    def take(self, data: bytes) -> None:
        """Add what was read; copied to the container's own log as far as that can take it."""
        self._copy(data)
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        self._lines.extend(line[:LINE_CHARACTERS] for line in lines[-protocol.STDERR_LINES :])
        self._unfinished = self._unfinished[:LINE_CHARACTERS]

    def text(self) -> str:
        kept = b"\n".join([*self._lines, self._unfinished] if self._unfinished else self._lines)
        return kept[-protocol.STDERR_BYTES :].decode("utf-8", "replace").replace("\0", "\ufffd")

    def _copy(self, data: bytes) -> None:
        now = time.monotonic()
        self._allowance = min(
            float(_COPY_BYTES_PER_SECOND), self._allowance + (now - self._counted_at) * _COPY_BYTES_PER_SECOND
        )
        self._counted_at = now
        if self._copy_to < 0 or len(data) > self._allowance:
            return
        self._allowance -= len(data)
        try:
            os.write(self._copy_to, data)
        except OSError:
            return


class Supervised:
    """One process that the daemon asked for by name."""

    def __init__(self, message: protocol.Start, serial: int, child: Child) -> None:
        self.message = message
        self.serial = serial
        self.child = child
        self.words = LastLines(copy_to=sys.__stderr__.fileno() if sys.__stderr__ else -1)
        self.gone = asyncio.Event()
        """Set when its end has been dealt with: swept, recorded, reported."""
        self.code = 0
        self.left = 0

    def state(self) -> ProcessState:
        return ProcessState(
            name=self.message.name,
            tag=self.message.tag,
            serial=self.serial,
            pid=self.child.pid,
            running=not self.child.ended.done() and not is_exiting(self.child.pid),
            settled=self.gone.is_set(),
            code=max(self.code, 0),
            signal=max(-self.code, 0),
            stderr=self.words.text(),
            left=self.left,
        )


class Supervisor:
    """The supervised processes. ``report`` is told of every end, after its tools are gone."""

    def __init__(self, reaper: Reaper, report: Callable[[ProcessState], None]) -> None:
        self._reaper = reaper
        self._report = report
        self._processes: Dict[str, Supervised] = {}
        self._serial = 0
        self._watchers: Set[asyncio.Task[None]] = set()
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="kill")

    def start(self, message: protocol.Start) -> None:
        """Raises Refused."""
        if not message.name or max(len(message.name), len(message.tag)) > 128:
            raise Refused("not_started", "a process needs a name, and name and tag at most 128 characters")
        present = self._processes.get(message.name)
        if present is not None and not present.gone.is_set():
            if present.message.tag == message.tag:
                return
            raise Refused("exists", f"{message.name} runs already")
        if present is None and len(self._processes) >= protocol.PROCESS_LIMIT:
            idle = [name for name, process in self._processes.items() if process.gone.is_set()]
            if not idle:
                raise Refused("busy", f"{protocol.PROCESS_LIMIT} processes run already")
            del self._processes[idle[0]]
        reading, writing = os.pipe()
        try:
            child = self._reaper.spawn(
                message.argv,
                message.env,
                message.cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=writing,
            )
        except Refused:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._serial += 1
        process = Supervised(message, self._serial, child)
        self._processes[message.name] = process
        watcher = asyncio.ensure_future(self._watch(process, PipeReader(reading, process.words.take)))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def stop(self, name: str, grace_seconds: float) -> None:
        """Returns when it is gone and its end was reported; at once when there is none."""
        process = self._processes.get(name)
        if process is None or process.gone.is_set():
            return
        process.child.signal_group(signal.SIGTERM)
        await asyncio.wait([asyncio.ensure_future(process.gone.wait())], timeout=max(0.0, min(grace_seconds, 60.0)))
        process.child.signal_group(signal.SIGKILL)
        await process.gone.wait()

    async def stop_all(self, grace_seconds: float) -> None:
        """Every process that was started here, execs too, and everything that carries a mark."""
        children = self._reaper.children()
        for child in children:
            child.signal_group(signal.SIGTERM)
        if children:
            await asyncio.wait([child.ended for child in children], timeout=grace_seconds)
        for child in children:
            child.signal_group(signal.SIGKILL)
        await self.kill(None)

    def states(self) -> Tuple[ProcessState, ...]:
        self._reaper.reap()
        return tuple(process.state() for process in self._processes.values())

    def memory(self) -> Dict[str, int]:
        return {
            name: memory_of(process.child.pid)
            for name, process in self._processes.items()
            if not process.child.ended.done()
        }

    async def kill(self, mark: Optional[str]) -> Tuple[int, int]:
        """Kill by mark (None: any). Returns found and left. In a thread: /proc may be slow, the pipes must not be."""
        loop = asyncio.get_running_loop()
        deadline = time.monotonic() + KILL_SECONDS
        scan = loop.run_in_executor(self._pool, kill_marked, mark, deadline)
        try:
            return await asyncio.wait_for(scan, 2 * KILL_SECONDS)
        except asyncio.TimeoutError:
            return 0, 1

    async def _watch(self, process: Supervised, stderr: PipeReader) -> None:
        process.code = await process.child.ended
        await asyncio.wait([stderr.ended], timeout=LAST_WORDS_SECONDS)
        stderr.close()
        if process.message.sweep:
            _, process.left = await self.kill(None)
        process.gone.set()
        self._report(process.state())
