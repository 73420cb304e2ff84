"""The daemon's end of one container's relay: asks it to do things, and survives its re-dials and our restarts.

``relay_host`` feeds it with connections (``serve_control``, ``deliver``); everybody else calls the rest. All calls
raise ContainerError, each within a time of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
import trio

from oubliette.container.control import Answer, Control
from oubliette.container.exec_stream import converse
from oubliette.errors import ContainerError, RemoteWireError
from oubliette.runtime.base import ExecResult
from oubliette_relay import protocol
from oubliette_relay.protocol import Failed, Heartbeat, Hello, LineSplitter, Processes, ProcessState, ToDaemon, ToRelay

log = structlog.get_logger(__name__)

REQUEST_SECONDS = 15.0
"""For a request that does not wait for anything inside; a re-dial of the relay included."""
DIAL_SECONDS = 10.0
DISCARD_SECONDS = 1.0
EXEC_START_SECONDS = 20.0
EXEC_EXTRA_SECONDS = 20.0
"""How much longer than its own time limit an exec may take to be told."""
_INTRODUCTION = "hello"
"""Id of the first question on each control connection; it is never answered by a connection."""
_PIECE = 1 << 16
_EXITS = 64
_READ_BURST_BYTES = 4 << 20
_READ_BYTES_PER_SECOND = 1 << 20
"""What a relay may tell. A real one stays far below; a hostile one must not keep the daemon busy with parsing."""


@dataclass(frozen=True, slots=True)
class ProcessExit:
    """A supervised process has ended, and its tools with it. ``signal`` 0: by itself, with ``code``."""

    name: str
    tag: str
    code: int
    signal: int
    stderr_tail: str
    left: int = 0
    """Marked processes that could not be killed."""


class RelayLink:
    """One container's relay. Made by ``RelayHost.listen``, dead when that ends."""

    def __init__(self, container_id: str) -> None:
        self.container_id = container_id
        self.hello: Hello | None = None
        """Of the newest control connection."""
        self.exits: trio.MemoryReceiveChannel[ProcessExit]
        self._exits, self.exits = trio.open_memory_channel[ProcessExit](_EXITS)
        self._control: Control | None = None
        self._closed = False
        self._connected = trio.Event()
        self._disconnected = trio.Event()
        self._disconnected.set()
        self._answers: dict[str, Answer] = {}
        self._seen: dict[str, int] = {}
        self._memory: Mapping[str, int] = {}
        self._client_left = trio.Event()
        self._dial_slots = trio.Semaphore(protocol.DIAL_LIMIT)
        self._exec_slots = trio.Semaphore(protocol.EXEC_LIMIT)

    # --- state

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    @property
    def expected(self) -> int:
        """Connections that the relay may open because we asked for them, open ones included."""
        dials = protocol.DIAL_LIMIT - self._dial_slots.value
        return dials + protocol.EXEC_LIMIT - self._exec_slots.value

    async def wait_connected(self) -> None:
        """Returns when the relay is there and its processes are known. Raises when nobody listens any more."""
        while not self._connected.is_set() or self._closed:
            if self._closed:
                raise ContainerError(f"container {self.container_id}: nobody listens for its relay any more")
            await self._connected.wait()

    async def wait_disconnected(self) -> None:
        """Returns when the relay is not there (at once when it never was)."""
        await self._disconnected.wait()

    def memory_bytes(self, name: str) -> int | None:
        """Resident memory of a supervised process at the last heartbeat."""
        return self._memory.get(name)

    # --- asking

    async def start_process(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        *,
        tag: str = "",
        sweep: bool = True,
    ) -> None:
        """Start a supervised process with exactly that environment. One of that name and tag that runs already is fine.
        ``sweep``: when it ends, everything marked is killed before its exit is reported."""
        await self._ask(
            lambda id_: protocol.Start(id_, name, tuple(argv), dict(env), cwd, tag, sweep),
            REQUEST_SECONDS,
            f"start {name}",
        )

    async def stop_process(self, name: str, grace_seconds: float) -> None:
        """Returns when it is gone, its tools too; at once when it does not run."""
        what = f"stop {name}"
        await self._ask(lambda id_: protocol.Stop(id_, name, grace_seconds), grace_seconds + REQUEST_SECONDS, what)

    async def list_processes(self) -> Sequence[ProcessState]:
        """All that were started, ended ones included."""
        answer = await self._ask(protocol.ListProcesses, REQUEST_SECONDS, "list processes")
        return answer.processes if isinstance(answer, Processes) else ()

    async def kill_session(self, mark: str) -> int:
        """Kill every process that carries the mark; returns how many were found. Raises when some are left."""
        what = f"kill the processes of {mark}"
        answer = await self._ask(lambda id_: protocol.KillSession(id_, mark), REQUEST_SECONDS, what)
        if not isinstance(answer, protocol.Killed):
            raise ContainerError(f"{what}: the relay answered {answer.op}")
        if answer.left:
            raise ContainerError(f"{what}: {answer.left} could not be killed")
        return answer.found

    @asynccontextmanager
    async def dial(self, port: int) -> AsyncIterator[trio.abc.HalfCloseableStream]:
        """A stream to 127.0.0.1:port inside, closed at the end. Waits for a slot when many are open."""
        async with self._dial_slots:
            stream = await self._paired(
                lambda id_: protocol.Dial(id_, port), DIAL_SECONDS, f"dial port {port}", again=True
            )
            try:
                yield stream
            finally:
                await trio.aclose_forcefully(stream)

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str = "/",
        stdin: bytes = b"",
        timeout_seconds: float = 120,
        max_output_bytes: int = 1 << 20,
        mark: str | None = None,
    ) -> ExecResult:
        """Run a command with exactly that environment. A time-out kills its process group and is a result; being
        cancelled kills it too. Larger outputs keep head and tail. ``mark``: it dies with that agent session."""
        what = f"exec {argv[0] if argv else ''}"
        async with self._exec_slots:
            stream = await self._paired(
                lambda id_: protocol.Exec(
                    id_, tuple(argv), dict(env), cwd, timeout_seconds, max_output_bytes, len(stdin), mark or ""
                ),
                EXEC_START_SECONDS,
                what,
                again=False,
            )
            try:
                with trio.fail_after(timeout_seconds + EXEC_EXTRA_SECONDS):
                    return await converse(stream, stdin, what)
            except trio.TooSlowError as error:
                raise ContainerError(f"{what}: the relay did not end it in time") from error
            finally:
                await trio.aclose_forcefully(stream)

    # --- for the relay host

    def deliver(self, dial_id: str, stream: trio.abc.HalfCloseableStream) -> bool:
        """A connection that says it was dialled. False: nobody asked for it, or not any more; the host closes it."""
        answer = self._answers.get(dial_id)
        if answer is None or answer.arrived.is_set() or dial_id == _INTRODUCTION:
            return False
        answer.stream = stream
        answer.arrived.set()
        return True

    async def serve_control(self, hello: Hello, stream: trio.abc.Stream, rest: bytes) -> None:
        """Live with one control connection until it ends. Raises RemoteWireError, also when there is one already."""
        if self._control is not None:
            raise RemoteWireError(f"container {self.container_id}: a second control connection")
        if hello.version != protocol.VERSION:
            raise RemoteWireError(f"container {self.container_id}: its relay speaks version {hello.version}")
        if self.hello is None or self.hello.boot != hello.boot:
            self._seen.clear()
        self.hello = hello
        control = self._control = Control()
        failure: RemoteWireError | None = None
        try:
            with control.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(control.write_to, stream)
                    nursery.start_soon(self._introduce, control)
                    try:
                        await self._read(stream, rest)
                    except RemoteWireError as error:
                        failure = error
                    nursery.cancel_scope.cancel("the control connection has ended")
        finally:
            self._control = None
            control.lose()
            if self._connected.is_set():
                self._connected = trio.Event()
            self._disconnected.set()
        if failure is not None:
            raise failure

    def client_left(self) -> None:
        """A stream of the agent's tools has ended: its client dials anew, or has ended with it."""
        self._client_left.set()

    async def wait_client_left(self) -> None:
        """Returns when one has left since the last look."""
        await self._client_left.wait()
        self._client_left = trio.Event()

    def drop(self, why: str) -> None:
        """End the control connection, if there is one: the relay dials anew."""
        if self._control is not None:
            self._control.scope.cancel(why)

    def close(self) -> None:
        """Nobody listens any more: whoever waits is told."""
        self._closed = True
        self._connected.set()
        self._disconnected.set()
        self._exits.close()

    # --- inside

    async def _introduce(self, control: Control) -> None:
        """Learn what happened while nobody was connected; only then is the relay ``connected``."""
        answer = Answer()
        self._answers[_INTRODUCTION] = answer
        control.post(protocol.ListProcesses(_INTRODUCTION), answer)
        with trio.move_on_after(REQUEST_SECONDS):
            await answer.arrived.wait()
        self._answers.pop(_INTRODUCTION, None)
        if not isinstance(answer.message, Processes):
            control.scope.cancel("the relay does not answer")
            return
        for state in answer.message.processes:
            self._note(state)
        self._disconnected = trio.Event()
        self._connected.set()

    async def _read(self, stream: trio.abc.Stream, rest: bytes) -> None:
        lines = LineSplitter()
        data: bytes | bytearray = rest
        allowance, counted_at = float(_READ_BURST_BYTES), trio.current_time()
        while True:
            try:
                for line in lines.feed(data):
                    self._told(protocol.decode_to_daemon(line))
                with trio.fail_after(protocol.SILENCE_SECONDS):
                    data = await stream.receive_some(_PIECE)
            except protocol.ProtocolError as error:
                raise RemoteWireError(f"container {self.container_id}: {error}") from error
            except trio.TooSlowError as error:
                raise RemoteWireError(f"container {self.container_id}: its relay is silent") from error
            except trio.BrokenResourceError:
                return
            if not data:
                return
            now = trio.current_time()
            allowance = min(_READ_BURST_BYTES, allowance + (now - counted_at) * _READ_BYTES_PER_SECOND) - len(data)
            counted_at = now
            if allowance < 0:
                await trio.sleep(-allowance / _READ_BYTES_PER_SECOND)

    def _told(self, message: ToDaemon) -> None:
        if isinstance(message, Heartbeat):
            self._memory = message.memory
        elif isinstance(message, ProcessState):
            self._note(message)
        else:
            answer = self._answers.get(message.id)
            if answer is not None and not answer.arrived.is_set():
                answer.message = message
                answer.arrived.set()

    def _note(self, state: ProcessState) -> None:
        """Report an end once, however often we are told."""
        if state.running or not state.settled or state.serial <= self._seen.get(state.name, 0):
            return
        if len(self._seen) >= protocol.PROCESS_LIMIT and state.name not in self._seen:
            raise protocol.ProtocolError("too many processes")
        self._seen[state.name] = state.serial
        end = ProcessExit(state.name, state.tag, state.code, state.signal, state.stderr, state.left)
        try:
            self._exits.send_nowait(end)
        except trio.WouldBlock as error:
            raise protocol.ProtocolError("too many exits") from error
        except trio.BrokenResourceError:
            log.debug("nobody waits for exits", container=self.container_id)

    async def _ask(self, question: Callable[[str], ToRelay], seconds: float, what: str) -> ToDaemon:
        """Ask until it is answered: every question that is asked this way may be asked again."""
        answer = await self._answered(question, seconds, what, again=True)
        if answer.message is None:
            await answer.discard()
            raise ContainerError(f"{what}: the relay answered with a connection")
        return answer.message

    async def _paired(
        self, question: Callable[[str], ToRelay], seconds: float, what: str, *, again: bool
    ) -> trio.abc.HalfCloseableStream:
        answer = await self._answered(question, seconds, what, again=again)
        if answer.stream is None:
            raise ContainerError(f"{what}: the relay answered without a connection")
        return answer.stream

    async def _answered(self, question: Callable[[str], ToRelay], seconds: float, what: str, *, again: bool) -> Answer:
        what = f"{what} in container {self.container_id}"
        id_ = secrets.token_hex(12)
        answer = Answer()
        handed_over = False
        try:
            with trio.fail_after(seconds):
                while not answer.arrived.is_set():
                    await self.wait_connected()
                    answer = self._answers[id_] = Answer()
                    await self._put(question(id_), answer)
                    if answer.lost:
                        answer = Answer() if again else await self._last_chance(id_, what)
            handed_over = True
        except trio.TooSlowError as error:
            raise ContainerError(f"{what}: no answer within {seconds:g} s") from error
        finally:
            self._answers.pop(id_, None)
            if not handed_over:
                with trio.move_on_after(DISCARD_SECONDS, shield=True):
                    await answer.discard()
        if isinstance(answer.message, Failed):
            raise ContainerError(f"{what}: {answer.message.message}")
        return answer

    async def _put(self, question: ToRelay, answer: Answer) -> None:
        control = self._control
        if control is None:
            raise AssertionError("a connected relay has a control connection")
        control.post(question, answer)
        try:
            await answer.arrived.wait()
        finally:
            control.asked.discard(answer)

    async def _last_chance(self, id_: str, what: str) -> Answer:
        """The question may have got through before its connection ended, and must not be asked twice: its answer
        comes on a connection of its own, or never."""
        answer = self._answers[id_] = Answer()
        with trio.move_on_after(2.0):
            await answer.arrived.wait()
        if not answer.arrived.is_set():
            raise ContainerError(f"{what}: the relay's connection ended and nobody knows whether it was begun")
        return answer
