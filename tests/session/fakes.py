"""A fake agent and container behind the real session tree and the real store: what the agent does is in the prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from oubliette.agent.base import (
    AgentAsk,
    AgentBusy,
    AgentDelta,
    AgentDurable,
    AgentEvent,
    AgentIdle,
    AgentLost,
    AgentSessionSpec,
    Prompt,
)
from oubliette.core.model import EventType, RequestKind
from oubliette.errors import AgentProtocolError
from oubliette.runtime.base import ExecResult


@dataclass
class FakeTurn:
    prompt: Prompt
    durables: list[AgentDurable] = field(default_factory=list)
    idle: AgentIdle | None = None


class FakeAgent:
    """Directives: ``say X`` (default), ``sleep`` (until aborted), ``ask`` (a permission), ``die``, ``fail``, ``stuck``.

    Every turn is remembered, as an agent's own store does.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._channels: dict[str, list[trio.MemorySendChannel[AgentEvent]]] = defaultdict(list)
        self._aborts: dict[str, trio.Event] = {}
        self._replies: dict[str, trio.MemorySendChannel[str]] = {}
        self.turns: dict[str, list[FakeTurn]] = defaultdict(list)
        self.sessions: list[AgentSessionSpec] = []
        self.aborted: list[str] = []
        self.killed: list[str] = []
        self.replied: list[tuple[str, str]] = []
        self.running: set[str] = set()
        self.servers: dict[str, dict[str, bool]] = {}
        """MCP servers of each directory, and whether they are connected."""
        self.added: list[tuple[str, str, Mapping[str, Any]]] = []
        self.refuses_servers = False

    async def create_session(self, spec: AgentSessionSpec) -> str:
        await trio.lowlevel.checkpoint()
        self.sessions.append(spec)
        return f"ses_{len(self.sessions)}"

    @asynccontextmanager
    async def events(
        self, agent_session_id: str, directory: str
    ) -> AsyncIterator[trio.MemoryReceiveChannel[AgentEvent]]:
        send, receive = trio.open_memory_channel[AgentEvent](1000)
        self._channels[agent_session_id].append(send)
        try:
            yield receive
        finally:
            self._channels[agent_session_id].remove(send)

    def _emit(self, sid: str, *events: AgentEvent) -> None:
        for event in events:
            if isinstance(event, AgentDurable):
                self.turns[sid][-1].durables.append(event)
            if isinstance(event, AgentIdle):
                self.turns[sid][-1].idle = event
                self.running.discard(sid)
            for channel in self._channels[sid]:
                channel.send_nowait(event)

    async def prompt(self, agent_session_id: str, directory: str, prompt: Prompt) -> None:
        await trio.lowlevel.checkpoint()
        self.turns[agent_session_id].append(FakeTurn(prompt))
        self.running.add(agent_session_id)
        self._nursery.start_soon(self._work, agent_session_id, prompt)

    async def _work(self, sid: str, prompt: Prompt) -> None:
        self._aborts[sid] = trio.Event()
        self._emit(sid, AgentBusy())
        part = f"prt_{prompt.message_id}"
        word, _, rest = prompt.text.partition(" ")
        if word == "sleep":
            await self._aborts[sid].wait()
            self._emit(sid, AgentIdle(aborted=True))
            return
        if word == "stuck":
            return
        if word == "die":
            self._emit(sid, AgentLost("killed"))
            self.running.discard(sid)
            return
        if word == "fail":
            self._emit(sid, AgentIdle(error={"code": "model_error", "message": rest, "retryable": False}))
            return
        if word == "ask":
            send, receive = trio.open_memory_channel[str](1)
            ref = f"per_{part}"
            self._replies[ref] = send
            body = {"action": "bash", "patterns": ["git push *"], "options": ["once", "always", "reject"]}
            self._emit(sid, AgentAsk(ref, RequestKind.PERMISSION, body))
            rest = await receive.receive()
        text = rest or prompt.text
        self._emit(
            sid,
            AgentDelta(part, "text", 0, text),
            AgentDurable(EventType.MESSAGE, {"part": part, "role": "assistant", "text": text}, f"{part}:text"),
            AgentIdle(final_text=text),
        )

    async def has_message(self, agent_session_id: str, directory: str, message_id: str) -> bool:
        await trio.lowlevel.checkpoint()
        return any(turn.prompt.message_id == message_id for turn in self.turns[agent_session_id])

    async def backfill(
        self, agent_session_id: str, directory: str, message_id: str
    ) -> tuple[Sequence[AgentDurable], AgentIdle | None]:
        await trio.lowlevel.checkpoint()
        for turn in self.turns[agent_session_id]:
            if turn.prompt.message_id == message_id:
                return turn.durables, turn.idle
        return (), None

    async def abort(self, agent_session_id: str, directory: str) -> None:
        await trio.lowlevel.checkpoint()
        self.aborted.append(agent_session_id)
        if agent_session_id in self._aborts:
            self._aborts[agent_session_id].set()

    async def reply_permission(self, agent_ref: str, directory: str, reply: str, message: str | None) -> None:
        await trio.lowlevel.checkpoint()
        self.replied.append((agent_ref, reply))
        self._replies[agent_ref].send_nowait(reply)

    async def reply_question(self, agent_ref: str, directory: str, answers: Mapping[str, Sequence[str]] | None) -> None:
        await trio.lowlevel.checkpoint()

    async def warm(self, directory: str) -> None:
        await trio.lowlevel.checkpoint()

    async def reconnect_mcp_server(self, directory: str, name: str) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    async def add_mcp_server(self, directory: str, name: str, config: Mapping[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        if self.refuses_servers:
            raise AgentProtocolError(f"add the MCP server {name!r} to the agent: failed")
        self.servers.setdefault(directory, {})[name] = True
        self.added.append((directory, name, config))

    async def remove_mcp_server(self, directory: str, name: str) -> None:
        await trio.lowlevel.checkpoint()
        self.servers[directory][name] = False

    async def mcp_servers(self, directory: str) -> Mapping[str, bool]:
        await trio.lowlevel.checkpoint()
        return dict(self.servers.get(directory, {}))


class FakeContainer:
    """Everything lives in one of these; its exec refuses, so turns list no files."""

    def __init__(self, agent: FakeAgent) -> None:
        self.agent = agent
        self.leases = 0
        self.files: dict[str, bytes] = {}

    def directory(self, workspace_id: str) -> str:
        return f"/workspaces/{workspace_id}"

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: bytes = b"",
        timeout_seconds: float = 120,
        max_output_bytes: int = 1 << 20,
    ) -> ExecResult:
        await trio.lowlevel.checkpoint()
        return ExecResult(127, b"", b"no such program", 0, 15)

    async def put_file(self, name: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.files[name] = data

    async def kill_session(self, mark: str) -> int:
        await trio.lowlevel.checkpoint()
        self.agent.killed.append(mark)
        return 0

    @asynccontextmanager
    async def lease(self, project_id: str, workspace_id: str) -> AsyncIterator[FakeContainer]:
        await trio.lowlevel.checkpoint()
        self.leases += 1
        try:
            yield self
        finally:
            self.leases -= 1
