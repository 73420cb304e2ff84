"""The real OpenCode on loopback, without any container: its process, and an Agent object that talks to it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import trio

from oubliette.agent.base import (
    AgentDurable,
    AgentEvent,
    AgentIdle,
    AgentSessionSpec,
    Prompt,
)
from oubliette.agent.message_id import new_message_id
from oubliette.agent.opencode import OpenCode
from oubliette.agent.opencode_config import ModelEntry, opencode_config, opencode_process
from oubliette.agent.toolkit import Toolkit
from oubliette.core.model import EventType
from tests.agent.fake_model import FakeModel

TURN_SECONDS = 40
MODELS = (ModelEntry("m", "openai-compatible", 100_000, 8_000, reasoning=True),)
T = TypeVar("T")


def toolkit_root() -> Path:
    """Where the tests keep the real toolkit between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oubliette-test-toolkit"


def write(directory: str, name: str, text: str) -> None:
    """A file in a work tree."""
    path = Path(directory, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read(directory: str, name: str) -> str | None:
    """What is in a file of a work tree; None: there is no such file."""
    path = Path(directory, name)
    return path.read_text() if path.exists() else None


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Process:
    """A running ``opencode serve`` with folders of its own."""

    root: Path
    port: int
    password: str
    child: subprocess.Popen[bytes]

    def directory(self, name: str) -> str:
        """A work tree."""
        path = self.root / "work" / name
        path.mkdir(parents=True, exist_ok=True)
        return str(path)

    def kill(self) -> None:
        """As a crash does it, and its tools with it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait(10)


def start(
    toolkit: Toolkit,
    root: Path,
    model_port: int,
    *,
    models: Sequence[ModelEntry] = MODELS,
    mcp: Mapping[str, Mapping[str, Any]] | None = None,
) -> Process:
    """Start it, as a container would, but under ``root``."""
    for folder in ("state", "cache", "home", "run", "work"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    config = opencode_config(models, capability="capability", mcp_servers=mcp, gateway=f"http://127.0.0.1:{model_port}",
                             plugin=str(toolkit.path / "plugin.js"))  # fmt: skip
    (root / "run/opencode.json").write_text(json.dumps(config))
    password, port = secrets.token_hex(16), free_port()
    argv, env = opencode_process(
        password,
        port=port,
        toolkit=str(toolkit.path),
        state=str(root / "state"),
        cache=str(root / "cache"),
        config=str(root / "run/opencode.json"),
        home=str(root / "home"),
    )
    with (root / "log").open("ab") as log:
        child = subprocess.Popen(
            argv, cwd=root / "work", env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    return Process(root, port, password, child)


@dataclass
class Line:
    """Connections to the process, which a test may cut. ``broken``: no new ones either."""

    broken: bool = False
    streams: list[trio.SocketStream] = field(default_factory=list)
    event_streams: list[trio.SocketStream] = field(default_factory=list)

    @asynccontextmanager
    async def dial(self, port: int) -> AsyncIterator[trio.abc.Stream]:
        if self.broken:
            raise OSError("the line is cut")
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        self.streams.append(stream)
        try:
            async with stream:
                yield stream
        finally:
            self.streams.remove(stream)

    def cut(self) -> None:
        """Break what is open now."""
        for stream in self.streams:
            stream.socket.close()


@dataclass
class Rig:
    process: Process
    agent: OpenCode
    model: FakeModel
    line: Line

    async def session(self, directory: str, **more: Any) -> str:
        return await self.agent.create_session(AgentSessionSpec(title="test", directory=directory, **more))

    def prompt(self, text: str, **more: Any) -> Prompt:
        return Prompt(**{"message_id": new_message_id(), "text": text, "model": "m", **more})

    async def turn(self, session_id: str, directory: str, text: str, **more: Any) -> Turn:
        """One turn from prompt to idle."""
        async with self.agent.events(session_id, directory) as stream:
            await self.agent.prompt(session_id, directory, self.prompt(text, **more))
            return await follow(stream)


@dataclass
class Turn:
    """Everything that was told of one turn, in order, its idle included."""

    events: list[AgentEvent]

    def of(self, kind: type[T]) -> list[T]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def idle(self) -> AgentIdle:
        (idle,) = self.of(AgentIdle)
        return idle

    @property
    def durables(self) -> list[AgentDurable]:
        return self.of(AgentDurable)

    @property
    def sources(self) -> list[str]:
        return [durable.source for durable in self.durables]

    def types(self) -> list[EventType]:
        return [durable.type for durable in self.durables]

    def bodies(self, kind: EventType) -> list[dict[str, Any]]:
        return [durable.body for durable in self.durables if durable.type is kind]


async def follow(
    stream: trio.MemoryReceiveChannel[AgentEvent],
    until: Callable[[AgentEvent], bool] = lambda event: isinstance(event, AgentIdle),
    seconds: float = TURN_SECONDS,
) -> Turn:
    """Collect up to and including the event that ``until`` accepts."""
    found: list[AgentEvent] = []
    with trio.fail_after(seconds):
        async for event in stream:
            found.append(event)
            if until(event):
                return Turn(found)
    raise AssertionError(f"the stream ended first: {found}")


def is_tool_call(event: AgentEvent) -> bool:
    return isinstance(event, AgentDurable) and event.type is EventType.TOOL_CALL


@asynccontextmanager
async def open_rig(process: Process, model: FakeModel, models: Iterable[ModelEntry] = MODELS) -> AsyncIterator[Rig]:
    """An Agent for that process, reading its events."""
    line = Line()
    agent = OpenCode(line.dial, process.password, list(models), port=process.port)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(60):
            await nursery.start(agent.run)
        yield Rig(process, agent, model, line)
        nursery.cancel_scope.cancel("test over")
