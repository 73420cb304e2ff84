"""What the session asks of an agent, and what the agent tells back.

One ``Agent`` object lives as long as its process in the container and serves every session of that container.
It translates the agent's own protocol into ``AgentEvent`` values; it decides nothing and stores nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import trio

from oubliette.core.model import Autonomy, EventType, ModelUsage, Reasoning, RequestKind

OWN_SERVER = "oubliette"
"""What the agent calls the MCP server of our own tools: to the model they are ``oubliette_<tool>``."""
AGENT_PORT = 4096
"""Where the agent listens inside, on the container's loopback."""
MODEL_PORT = 4097
"""Where the relay listens inside for the agent's model requests."""


@dataclass(frozen=True, slots=True)
class Attachment:
    filename: str
    content_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class AgentSessionSpec:
    """How one agent session is set up. ``tools_allowed`` None means all."""

    title: str
    directory: str
    autonomy: Autonomy = Autonomy.OFF
    tools_allowed: Sequence[str] | None = None
    tools_disallowed: Sequence[str] = ()
    protected_paths: Sequence[str] = ()
    permissions: Mapping[str, Any] = field(default_factory=dict)
    caller_tools: Sequence[str] = ()
    """Whole names of the tools that callers offer to this very session."""
    mcp_servers: Sequence[str] | None = None
    """Given: of all MCP servers' tools the session sees its own ``caller_tools`` and those of these servers alone, also
    when others are added to the process while it runs."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One turn's input. ``message_id`` is ours (``new_message_id``): the same one is never sent twice."""

    message_id: str
    text: str
    model: str
    """Alias of the config; the gateway resolves it."""
    system: str | None = None
    attachments: Sequence[Attachment] = ()
    reasoning: Reasoning = Reasoning.MEDIUM
    hidden_tools: Sequence[str] = ()
    """Globs of tool names this session must not see; without ``spec`` they stay hidden in later turns too."""
    spec: AgentSessionSpec | None = None
    """Given: the session follows this one from now on (autonomy, tools and paths may differ from those at creation)."""


@dataclass(frozen=True, slots=True)
class AgentDurable:
    """Something to store: becomes one event. ``source`` is stable over back-fill."""

    type: EventType
    body: dict[str, Any]
    source: str


@dataclass(frozen=True, slots=True)
class AgentDelta:
    """A preview. ``offset`` in characters of that part."""

    part: str
    kind: Literal["text", "reasoning", "tool_input", "tool_output"]
    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class AgentAsk:
    """The agent waits for a permission or an answer. ``body`` is SHAPES' ``permission`` or ``questions``."""

    agent_ref: str
    kind: RequestKind
    body: Any


@dataclass(frozen=True, slots=True)
class AgentAskGone:
    """An ask was settled on the agent's side (answered, or its turn ended)."""

    agent_ref: str


@dataclass(frozen=True, slots=True)
class AgentBusy:
    """The agent works on the turn."""


@dataclass(frozen=True, slots=True)
class AgentRetry:
    """The agent waits to ask its model again."""

    attempt: int
    message: str
    retry_at_ms: int


@dataclass(frozen=True, slots=True)
class AgentIdle:
    """The turn is over; every durable of it came before. ``error`` set: it failed (SHAPES' error object). ``aborted``:
    by our abort. ``final_text``: all text of the agent's last message."""

    error: dict[str, Any] | None = None
    aborted: bool = False
    final_text: str = ""
    usage: ModelUsage | None = None


@dataclass(frozen=True, slots=True)
class AgentLost:
    """The process is gone or its event stream cannot be had again; the turn's fate is unknown."""

    detail: str


AgentEvent = AgentDurable | AgentDelta | AgentAsk | AgentAskGone | AgentBusy | AgentRetry | AgentIdle | AgentLost


class Agent(Protocol):
    """A running agent process. All calls raise AgentUnreachable or AgentProtocolError, each has its own deadline."""

    async def create_session(self, spec: AgentSessionSpec) -> str:
        """A new agent session; returns the agent's id of it."""

    def events(
        self, agent_session_id: str, directory: str
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[AgentEvent]]:
        """Everything of that session's turn from now on, in order: of the one that ``prompt`` begins, or that
        ``backfill`` finds running. Never blocks the reader of the process's stream: when the consumer lags far behind,
        deltas are dropped first. Ends with AgentLost when the process dies."""

    async def prompt(self, agent_session_id: str, directory: str, prompt: Prompt) -> None:
        """Start a turn. Returns when the agent has accepted it."""

    async def has_message(self, agent_session_id: str, directory: str, message_id: str) -> bool:
        """Whether a prompt with that id has arrived (asked before sending again after a crash)."""

    async def backfill(
        self, agent_session_id: str, directory: str, message_id: str
    ) -> tuple[Sequence[AgentDurable], AgentIdle | None]:
        """All durable events of the turn that ``message_id`` began, from the agent's own history, and how it ended
        (None: it still runs)."""

    async def abort(self, agent_session_id: str, directory: str) -> None:
        """Stop the running turn; fine when there is none."""

    async def reply_permission(self, agent_ref: str, directory: str, reply: str, message: str | None) -> None:
        """``once``, ``always`` or ``reject``."""

    async def reply_question(self, agent_ref: str, directory: str, answers: Mapping[str, Sequence[str]] | None) -> None:
        """Question id to the ids of chosen options or free text; None rejects the question."""

    async def reconnect_mcp_server(self, directory: str, name: str) -> bool:
        """Start an MCP server of that directory again whose program has ended; True when it had to be."""

    async def warm(self, directory: str) -> None:
        """Make the first turn in that directory as fast as later ones."""

    async def add_mcp_server(self, directory: str, name: str, config: Mapping[str, Any]) -> None:
        """Add an MCP server to the running process for that directory, in place of one of that name."""

    async def remove_mcp_server(self, directory: str, name: str) -> None:
        """Take such a server away again."""

    async def mcp_servers(self, directory: str) -> Mapping[str, bool]:
        """The MCP servers of that directory, and whether each is connected."""
