"""The wire format between a relay and its daemon, and its one owner. Sans-IO: no sockets, no clock.

A connection starts with one JSON line, the hello, which says what it is for. ``control`` goes on with JSON lines, one
message each; every other kind goes on with raw bytes. The daemon imports this module too, so that both ends are one.
Python 3.9 and the standard library are enough for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Dict, List, Mapping, Optional, Tuple, Type, Union

from oubliette_relay.codec import CHECKS, Json, build, encode_object, parse_object
from oubliette_relay.codec import ProtocolError as ProtocolError

VERSION = 1

HELLO_BYTES = 4096
"""Longest hello, its newline included."""
HELLO_SECONDS = 5.0
LINE_BYTES = 1 << 20
"""Longest line of a control connection, its newline included."""
HEARTBEAT_SECONDS = 2.0
"""How often the relay says that it lives."""
SILENCE_SECONDS = 15.0
"""A control connection that was silent for so long is dead."""

STDERR_LINES = 50
STDERR_BYTES = 16 * 1024
"""What is kept of a process's last words."""
PROCESS_LIMIT = 8
"""Supervised processes of one relay. Eight last words of 16 KiB fit into one line, whatever they contain."""
EXEC_LIMIT = 16
"""Execs at once."""
DIAL_LIMIT = 32
"""Dialled connections at once."""
MODEL_LIMIT = 31
"""Model connections at once; further ones wait inside."""
OUTPUT_LIMIT = 32 << 20
"""The most that an exec keeps of each of its two outputs, whatever was asked for."""

SESSION_VARIABLE = "OUBLIETTE_SESSION"
"""The mark: this variable in a process's environment names the agent session it works for."""

HELLO_KINDS = ("control", "dialed", "mcp", "http")


class LineSplitter:
    """Cuts a stream of bytes into lines, holding at most ``limit`` bytes of an unfinished one."""

    def __init__(self, limit: int = LINE_BYTES) -> None:
        self._limit = limit
        self._held = bytearray()
        self._searched = 0

    def feed(self, data: Union[bytes, bytearray]) -> List[bytes]:
        """The lines that ``data`` completes, without their newlines. Raises ProtocolError for one that is too long."""
        self._held += data
        lines = []
        start = 0
        while True:
            end = self._held.find(b"\n", max(start, self._searched))
            length = (end + 1 if end >= 0 else len(self._held)) - start
            if length > self._limit:
                raise ProtocolError(f"a line of more than {self._limit} bytes")
            if end < 0:
                break
            lines.append(bytes(self._held[start:end]))
            start = end + 1
        del self._held[:start]
        self._searched = len(self._held)
        return lines


# --- hello


@dataclass(frozen=True)
class Hello:
    """The first line of a connection. ``id`` goes with ``dialed``, the rest with ``control``."""

    kind: str
    id: str = ""
    version: int = VERSION
    boot: str = ""
    """Made anew by each relay process: the same one again means that nothing inside was lost."""
    python: str = ""
    model_port: int = 0


class HelloReader:
    """Reads the hello of a fresh connection and keeps what came behind it."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: Union[bytes, bytearray]) -> Optional[Tuple[Hello, bytes]]:
        """The hello and the bytes behind it, or None while it is not complete. Raises ProtocolError."""
        searched = len(self._held)
        self._held += data
        end = self._held.find(b"\n", searched)
        if end >= HELLO_BYTES or (end < 0 and len(self._held) >= HELLO_BYTES):
            raise ProtocolError(f"a hello of more than {HELLO_BYTES} bytes")
        if end < 0:
            return None
        return decode_hello(bytes(self._held[:end])), bytes(self._held[end + 1 :])


def encode_hello(hello: Hello) -> bytes:
    """The line, newline included."""
    told = {item.name: getattr(hello, item.name) for item in fields(hello) if item.name != "kind"}
    return encode_object({"hello": hello.kind, **{name: value for name, value in told.items() if value}})


def decode_hello(line: bytes) -> Hello:
    """Raises ProtocolError. Keys that we do not know are ignored."""
    told = parse_object(line)
    kind = told.pop("hello", None)
    if kind not in HELLO_KINDS:
        raise ProtocolError("a hello that names none of " + ", ".join(HELLO_KINDS))
    told["kind"] = kind
    hello: Hello = build(Hello, told)
    if kind == "dialed" and not hello.id:
        raise ProtocolError("a dialed hello without an id")
    return hello


# --- messages to the relay; ``id`` comes back in the answer


@dataclass(frozen=True)
class Start:
    """Start a supervised process. It is a success when one of that name and tag runs already."""

    op = "start"
    id: str
    name: str
    argv: Tuple[str, ...]
    env: Dict[str, str]
    cwd: str = "/"
    tag: str = ""
    """Tells one start from the next; comes back in everything that is said of the process."""
    sweep: bool = True
    """When it ends, kill all processes that carry any session mark before its exit is reported."""


@dataclass(frozen=True)
class Stop:
    """SIGTERM, and SIGKILL after the grace. Answered when it is gone; one that does not run is a success."""

    op = "stop"
    id: str
    name: str
    grace_seconds: float = 5.0


@dataclass(frozen=True)
class ListProcesses:
    """Answered with ``Processes``."""

    op = "list"
    id: str


@dataclass(frozen=True)
class Exec:
    """Run a command. Answered by a connection ``dialed {id}`` (or ``Failed``): on it the relay reads ``stdin_bytes``
    bytes and later writes an ``ExecDone`` line, the kept stdout and the kept stderr. When the daemon closes that
    connection earlier, the command's process group is killed."""

    op = "exec"
    id: str
    argv: Tuple[str, ...]
    env: Dict[str, str]
    cwd: str
    timeout_seconds: float
    max_output_bytes: int
    """Of each output; larger ones keep their head and their tail."""
    stdin_bytes: int = 0
    mark: str = ""


@dataclass(frozen=True)
class KillSession:
    """Kill whatever carries this mark, until none is left. Answered with ``Killed``."""

    op = "kill_session"
    id: str
    mark: str


@dataclass(frozen=True)
class Dial:
    """Connect to 127.0.0.1:port inside. Answered by a connection ``dialed {id}``, or ``Failed``."""

    op = "dial"
    id: str
    port: int


# --- messages to the daemon


@dataclass(frozen=True)
class Done:
    op = "done"
    id: str


@dataclass(frozen=True)
class Failed:
    """``code``: ``refused`` (nobody listens), ``busy`` (a limit), ``exists``, ``not_started``, ``internal``."""

    op = "failed"
    id: str
    code: str
    message: str


@dataclass(frozen=True)
class Killed:
    """``left``: how many were still there when the patience ended."""

    op = "killed"
    id: str
    found: int
    left: int = 0


@dataclass(frozen=True)
class ProcessState:
    """One supervised process. ``serial`` grows with each start of this relay. ``signal`` 0: it exited by itself."""

    op = "exit"
    name: str
    tag: str
    serial: int
    pid: int
    running: bool
    settled: bool = False
    """It has ended and its end was dealt with; what follows is known only then."""
    code: int = 0
    signal: int = 0
    stderr: str = ""
    """Its last lines."""
    left: int = 0
    """Marked processes that could not be killed."""


@dataclass(frozen=True)
class Processes:
    op = "processes"
    id: str
    processes: Tuple[ProcessState, ...]


@dataclass(frozen=True)
class Heartbeat:
    """``memory``: resident bytes of each running supervised process."""

    op = "heartbeat"
    memory: Dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ExecDone:
    """Written on an exec's own connection, followed by ``stdout`` and then ``stderr`` bytes of kept output."""

    op = "exec_done"
    exit_code: int
    """128 + number when a signal ended it, as shells say it."""
    stdout: int
    stderr: int
    stdout_bytes: int
    stderr_bytes: int
    """How much there was in all."""
    timed_out: bool = False


ToRelay = Union[Start, Stop, ListProcesses, Exec, KillSession, Dial]
ToDaemon = Union[Done, Failed, Killed, ProcessState, Processes, Heartbeat]
Message = Union[ToRelay, ToDaemon, ExecDone]

_TO_RELAY: Mapping[str, Type[Any]] = {kind.op: kind for kind in (Start, Stop, ListProcesses, Exec, KillSession, Dial)}
_TO_DAEMON: Mapping[str, Type[Any]] = {
    kind.op: kind for kind in (Done, Failed, Killed, ProcessState, Processes, Heartbeat)
}


def encode(message: Message) -> bytes:
    """One line, newline included. Raises ProtocolError when it would be longer than the peer accepts."""
    line = encode_object({"op": message.op, **_plain(message)})
    if len(line) > LINE_BYTES:
        raise ProtocolError(f"a message of {len(line)} bytes, at most {LINE_BYTES} fit")
    return line


def decode_to_relay(line: bytes) -> ToRelay:
    """What the relay may be told. Raises ProtocolError."""
    message: ToRelay = _message(_TO_RELAY, line)
    return message


def decode_to_daemon(line: bytes) -> ToDaemon:
    """What the daemon may be told on a control connection. Raises ProtocolError."""
    message: ToDaemon = _message(_TO_DAEMON, line)
    return message


def decode_exec_done(line: bytes) -> ExecDone:
    """Raises ProtocolError, also for sizes that cannot be."""
    done: ExecDone = _message({ExecDone.op: ExecDone}, line)
    sizes = (done.stdout, done.stderr, done.stdout_bytes - done.stdout, done.stderr_bytes - done.stderr)
    if min(sizes) < 0 or max(done.stdout, done.stderr) > OUTPUT_LIMIT:
        raise ProtocolError("exec_done with impossible sizes")
    return done


def _states(value: Any) -> Tuple[ProcessState, ...]:
    if not isinstance(value, list) or len(value) > PROCESS_LIMIT or not all(isinstance(item, dict) for item in value):
        raise ValueError("a list of processes")
    return tuple(build(ProcessState, item) for item in value)


CHECKS["Tuple[ProcessState, ...]"] = _states


def _message(kinds: Mapping[str, Type[Any]], line: bytes) -> Any:
    told = parse_object(line)
    op = told.pop("op", None)
    kind = kinds.get(op) if isinstance(op, str) else None
    if kind is None:
        raise ProtocolError("a message whose op is none of " + ", ".join(kinds))
    return build(kind, told)


def _plain(message: Any) -> Json:
    out = {}
    for item in fields(message):
        value = getattr(message, item.name)
        out[item.name] = [_plain(each) for each in value] if item.name == "processes" else value
    return out
