"""One-off commands: started for a connection of their own, killed with it, their output kept head and tail."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Awaitable, Callable, List, Tuple

from oubliette_relay import protocol
from oubliette_relay.processes import LAST_WORDS_SECONDS, Child, PipeReader, Reaper, Refused

_PIECE = 1 << 16

RUN_LIMIT = 2 * protocol.EXEC_LIMIT
"""The daemon keeps to its own limit; one that it has ended may still be ending here."""

DialBack = Callable[[str], Awaitable[Tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class HeadAndTail:
    """Keeps the first ``limit - limit // 2`` and the last ``limit // 2`` bytes of a stream."""

    def __init__(self, limit: int) -> None:
        limit = max(0, min(limit, protocol.OUTPUT_LIMIT))
        self._tail_limit = limit // 2
        self._head_limit = limit - self._tail_limit
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    def take(self, data: bytes) -> None:
        self.total += len(data)
        room = self._head_limit - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        # Cut only now and then: moving the whole tail for each small piece would be quadratic.
        if len(self._tail) > 2 * self._tail_limit + _PIECE:
            del self._tail[: len(self._tail) - self._tail_limit]

    def kept(self) -> bytes:
        return bytes(self._head) + bytes(self._tail[max(0, len(self._tail) - self._tail_limit) :])


class Execs:
    """All running commands. ``dial_back`` opens the connection that belongs to an id."""

    def __init__(self, reaper: Reaper, dial_back: DialBack) -> None:
        self._reaper = reaper
        self._dial_back = dial_back
        self._running = 0

    async def run(self, message: protocol.Exec) -> None:
        """The whole life of one command. Raises Refused when it cannot be started."""
        if self._running >= RUN_LIMIT:
            raise Refused("busy", f"{RUN_LIMIT} commands run already")
        self._running += 1
        try:
            await _Command(self._reaper, message).live(self._dial_back)
        finally:
            self._running -= 1


class _Command:
    def __init__(self, reaper: Reaper, message: protocol.Exec) -> None:
        self._message = message
        self._timed_out = False
        self._outputs = (HeadAndTail(message.max_output_bytes), HeadAndTail(message.max_output_bytes))
        self._child, self._stdin, out, err = _spawn(reaper, message)
        self._readers = (PipeReader(out, self._outputs[0].take), PipeReader(err, self._outputs[1].take))

    async def live(self, dial_back: DialBack) -> None:
        seconds = max(0.0, min(self._message.timeout_seconds, 1e7))
        alarm = asyncio.get_running_loop().call_later(seconds, self._time_out)
        tasks: List[asyncio.Task[None]] = []
        try:
            reader, writer = await dial_back(self._message.id)
            try:
                tasks.append(asyncio.ensure_future(self._feed(reader)))
                await self._child.ended
                await asyncio.wait([pipe.ended for pipe in self._readers], timeout=LAST_WORDS_SECONDS)
                await _answer(writer, self._done(), [output.kept() for output in self._outputs])
            finally:
                writer.close()
        finally:
            alarm.cancel()
            self._kill()
            for task in tasks:
                task.cancel()
                await asyncio.wait([task])
            for pipe in self._readers:
                pipe.close()
            # Last: while the feeding task lives, the number of this descriptor must not become somebody else's.
            self._close_stdin()

    async def _feed(self, reader: asyncio.StreamReader) -> None:
        """Carry the announced bytes to the command and close its stdin. Whoever closes the connection before the
        command has ended does not want it any more; so it is with one who sends more than was announced."""
        left = self._message.stdin_bytes
        accepts = True
        try:
            while left > 0:
                data = await reader.read(min(_PIECE, left))
                if not data:
                    self._kill()
                    return
                left -= len(data)
                # A command that has closed its stdin is none the worse for it; what was sent must still be read.
                accepts = accepts and await _write_all(self._stdin, data)
            self._close_stdin()
            await reader.read(1)
        except OSError:
            self._kill()
            return
        self._kill()

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1

    def _time_out(self) -> None:
        self._timed_out = True
        self._kill()

    def _kill(self) -> None:
        self._child.signal_group(signal.SIGKILL)

    def _done(self) -> protocol.ExecDone:
        code = self._child.ended.result()
        out, err = self._outputs
        return protocol.ExecDone(
            exit_code=code if code >= 0 else 128 - code,
            stdout=len(out.kept()),
            stderr=len(err.kept()),
            stdout_bytes=out.total,
            stderr_bytes=err.total,
            timed_out=self._timed_out,
        )


def _spawn(reaper: Reaper, message: protocol.Exec) -> Tuple[Child, int, int, int]:
    """The child, our end of its stdin and our ends of its two outputs. Raises Refused."""
    env = dict(message.env)
    if message.mark:
        env[protocol.SESSION_VARIABLE] = message.mark
    fds: List[int] = []
    try:
        for _ in range(3):
            fds.extend(os.pipe())
        child = reaper.spawn(message.argv, env, message.cwd, stdin=fds[0], stdout=fds[3], stderr=fds[5])
    except OSError as error:
        _close_all(fds)
        raise Refused("busy", f"no pipe for the command: {error.strerror}") from error
    except Refused:
        _close_all(fds)
        raise
    _close_all([fds[0], fds[3], fds[5]])
    os.set_blocking(fds[1], False)
    return child, fds[1], fds[2], fds[4]


def _close_all(fds: List[int]) -> None:
    for fd in fds:
        os.close(fd)


async def _write_all(fd: int, data: bytes) -> bool:
    """False: nobody reads it any more."""
    loop = asyncio.get_running_loop()
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            ready: asyncio.Future[None] = loop.create_future()
            loop.add_writer(fd, _wake, ready)
            try:
                await ready
            finally:
                loop.remove_writer(fd)
        except OSError:
            return False
    return True


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _answer(writer: asyncio.StreamWriter, done: protocol.ExecDone, kept: List[bytes]) -> None:
    try:
        writer.write(protocol.encode(done))
        for data in kept:
            for start in range(0, len(data), _PIECE):
                writer.write(data[start : start + _PIECE])
                await writer.drain()
        writer.write_eof()
        await writer.drain()
    except OSError:
        return
