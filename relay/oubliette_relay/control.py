"""The control connection: dialled for ever, told what to do, telling what happened."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Coroutine, Optional, Set

from oubliette_relay import protocol
from oubliette_relay.execs import Execs
from oubliette_relay.pairing import Pairs, dial_daemon_streams
from oubliette_relay.processes import Reaper, Refused, Supervisor
from oubliette_relay.protocol import Hello, LineSplitter, ProcessState, ProtocolError

FIRST_RETRY_SECONDS = 0.02
LAST_RETRY_SECONDS = 1.0
BACKLOG_BYTES = 4 << 20
"""Unread answers; a daemon that leaves more of them unread is dialled anew."""
OPERATIONS = 128
"""At once; further lines are not read meanwhile."""
_PIECE = 1 << 16


class Control:
    """Everything the daemon may ask of this relay."""

    def __init__(self, path: str, reaper: Reaper, pairs: Pairs, model_port: int) -> None:
        self._path = path
        self._hello = Hello(
            "control", boot=os.urandom(8).hex(), python=".".join(map(str, sys.version_info[:3])), model_port=model_port
        )
        self._pairs = pairs
        self._reaper = reaper
        self.supervisor = Supervisor(reaper, self._send)
        self._execs = Execs(reaper, self._dial_back)
        self._writer: Optional[asyncio.StreamWriter] = None
        self._slots = asyncio.Semaphore(OPERATIONS)
        self._operations: Set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Dial, serve, dial again. Never returns: a daemon that is gone comes back one day."""
        pause = FIRST_RETRY_SECONDS
        while True:
            try:
                reader, writer = await dial_daemon_streams(self._path, self._hello)
            except OSError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_RETRY_SECONDS)
                continue
            self._writer = writer
            try:
                if await self._serve(reader):
                    pause = FIRST_RETRY_SECONDS
            except (OSError, ProtocolError) as error:
                _log(f"control connection dropped: {error}")
            finally:
                self._writer = None
                writer.transport.abort()
            # Also after a connection that was made: a daemon that refuses us at once must not be hammered.
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_RETRY_SECONDS)

    async def beat(self) -> None:
        """Heartbeats, and what must be looked after now and then. Never returns."""
        while True:
            self._send(protocol.Heartbeat(self.supervisor.memory()))
            self._pairs.sweep()
            self._reaper.reap()
            await asyncio.sleep(protocol.HEARTBEAT_SECONDS)

    async def _serve(self, reader: asyncio.StreamReader) -> bool:
        """True when the daemon said anything at all."""
        lines = LineSplitter()
        heard = False
        while True:
            data = await reader.read(_PIECE)
            if not data:
                return heard
            for line in lines.feed(data):
                message = protocol.decode_to_relay(line)
                heard = True
                await self._slots.acquire()
                self._begin(self._operate(message))

    def _begin(self, operation: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(operation)
        self._operations.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._operations.discard(task)
        self._slots.release()

    async def _operate(self, message: protocol.ToRelay) -> None:
        try:
            await self._do(message)
        except Refused as refusal:
            self._send(protocol.Failed(message.id, refusal.code, str(refusal)[:2000]))
        except Exception as error:  # one operation that fails is an answer, never the end of the relay
            _log(f"{message.op} failed: {error!r}")
            self._send(protocol.Failed(message.id, "internal", repr(error)[:2000]))

    async def _do(self, message: protocol.ToRelay) -> None:
        if isinstance(message, protocol.Dial):
            await self._pairs.dial(message.id, message.port)
        elif isinstance(message, protocol.Exec):
            await self._execs.run(message)
        elif isinstance(message, protocol.ListProcesses):
            self._send(protocol.Processes(message.id, self.supervisor.states()))
        elif isinstance(message, protocol.KillSession):
            if not message.mark:
                raise Refused("internal", "kill_session needs a mark")
            self._send(protocol.Killed(message.id, *await self.supervisor.kill(message.mark)))
        elif isinstance(message, protocol.Start):
            self.supervisor.start(message)
            self._send(protocol.Done(message.id))
        else:
            await self.supervisor.stop(message.name, message.grace_seconds)
            self._send(protocol.Done(message.id))

    async def _dial_back(self, id: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:  # noqa: A002
        try:
            return await dial_daemon_streams(self._path, Hello("dialed", id=id))
        except OSError as error:
            raise Refused("refused", f"the daemon cannot be dialled: {error}") from error

    def _send(self, message: protocol.ToDaemon | ProcessState) -> None:
        """Without waiting; dropped when nobody is connected: who connects asks with ``list``."""
        writer = self._writer
        if writer is None or writer.transport.is_closing():
            return
        if writer.transport.get_write_buffer_size() > BACKLOG_BYTES:
            _log("the daemon does not read; dialling anew")
            writer.transport.abort()
            return
        writer.write(protocol.encode(message))


def _log(text: str) -> None:
    """To the container's own log, as far as that can take it."""
    try:
        sys.stderr.write(f"relay: {text}\n")
        sys.stderr.flush()
    except OSError:
        return
