"""The nouns of Oubliette as plain values: states, identities and the rows of the store.

Pure: no clock, no randomness, no I/O. Times are aware UTC datetimes, money is integer micro-USD (``_microusd``),
JSON columns are already parsed. What clients see of these is in ``shapes``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from oubliette.core.principals import AGENT_GRANT

Json = dict[str, Any]


class SessionStatus(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    PAUSED = "paused"
    IDLE = "idle"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN_STATUSES = frozenset(
    {SessionStatus.STARTING, SessionStatus.RUNNING, SessionStatus.WAITING, SessionStatus.PAUSED, SessionStatus.IDLE}
)


class Reason(StrEnum):
    BUDGET = "budget"
    LIMIT = "limit"
    PERMISSION = "permission"
    QUESTION = "question"
    CALLER_TOOL = "caller_tool"
    MODEL_RETRY = "model_retry"
    HIBERNATED = "hibernated"
    AGENT_LOST = "agent_lost"
    CONTAINER_LOST = "container_lost"
    DAEMON_RESTART = "daemon_restart"
    TIMEOUT = "timeout"
    ENDED_BY_PARENT = "ended_by_parent"
    PROJECT_DELETED = "project_deleted"


class TurnStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


class Outcome(StrEnum):
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    TIMED_OUT = "timed_out"
    BUDGET = "budget"


class EventType(StrEnum):
    STATUS = "status"
    TURN_QUEUED = "turn_queued"
    TURN_STARTED = "turn_started"
    MESSAGE = "message"
    REASONING = "reasoning"
    TOOL_CALL = "tool_call"
    TOOL_RESULT = "tool_result"
    TODO = "todo"
    FILES = "files"
    COMPLETION = "completion"
    PERMISSION_REQUEST = "permission_request"
    QUESTION = "question"
    CALLER_TOOL_REQUEST = "caller_tool_request"
    REQUEST_RESOLVED = "request_resolved"
    CHILD_SPAWNED = "child_spawned"
    CHILD_ENDED = "child_ended"
    USAGE = "usage"
    ERROR = "error"
    SCHEDULE_RUN_STARTED = "schedule_run_started"
    SCHEDULE_RUN_ENDED = "schedule_run_ended"
    SYSTEM = "system"


class ErrorCode(StrEnum):
    INVALID_ARGUMENT = "invalid_argument"
    UNKNOWN_ACTION = "unknown_action"
    NOT_FOUND = "not_found"
    UNAUTHENTICATED = "unauthenticated"
    PERMISSION_DENIED = "permission_denied"
    CONFLICT = "conflict"
    AMBIGUOUS = "ambiguous"
    KEY_REUSED = "key_reused"
    BUSY = "busy"
    QUEUE_FULL = "queue_full"
    LIMIT_REACHED = "limit_reached"
    BUDGET_SPENT = "budget_spent"
    RATE_LIMITED = "rate_limited"
    TOO_LARGE = "too_large"
    PURGED = "purged"
    INVALID_CURSOR = "invalid_cursor"
    NOT_READY = "not_ready"
    UNAVAILABLE = "unavailable"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    CLONE_FAILED = "clone_failed"
    AGENT_ERROR = "agent_error"
    MODEL_ERROR = "model_error"
    STORAGE_FULL = "storage_full"
    INTERNAL = "internal"


class PlaceState(StrEnum):
    """State of a project or a workspace."""

    PREPARING = "preparing"
    CLONING = "cloning"
    READY = "ready"
    FAILED = "failed"
    DELETING = "deleting"


class ContainerState(StrEnum):
    ABSENT = "absent"
    PULLING = "pulling"
    BUILDING = "building"
    CREATING = "creating"
    STARTING = "starting"
    READY = "ready"
    HIBERNATED = "hibernated"
    STOPPED = "stopped"
    LOST = "lost"
    FAILED = "failed"


class Autonomy(StrEnum):
    """How much an agent asks: ``off`` asks nothing inside the sandbox, ``low`` asks most."""

    OFF = "off"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class Reasoning(StrEnum):
    OFF = "off"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    MAX = "max"


class RequestKind(StrEnum):
    PERMISSION = "permission"
    QUESTION = "question"
    CALLER_TOOL = "caller_tool"


@dataclass(frozen=True, slots=True)
class ProjectRow:
    """``settings`` holds the optional keys of ``project create`` (model, limits, network, credential_refs, ...)."""

    project_id: str
    name: str
    state: PlaceState
    created_at: datetime
    updated_at: datetime
    created_by: Json
    default_workspace_id: str
    description: str | None = None
    remote_url: str | None = None
    branch: str | None = None
    settings: Json = field(default_factory=dict)
    error: Json | None = None

    @property
    def agent_grant(self) -> str | None:
        """What its containers are made for when its agents have been lent a scope, whether that still holds or not."""
        kept: Json | None = self.settings.get(AGENT_GRANT)
        return str(kept["id"]) if kept else None


@dataclass(frozen=True, slots=True)
class WorkspaceRow:
    workspace_id: str
    project_id: str
    default: bool
    state: PlaceState
    created_at: datetime
    last_session_at: datetime | None = None
    external_id: str | None = None
    source: str | None = None
    forked_from: str | None = None
    error: Json | None = None
    created_by: Json | None = None
    """None: made with its project, or before this was written down."""


@dataclass(frozen=True, slots=True)
class ContainerRow:
    """One sandbox. ``workspace_id`` is None when the project's workspaces share one container.

    ``container_id`` is ours, chosen before the engine is asked; ``generation`` grows with each re-creation.
    ``capability`` is the secret that its inside shows to the gateway; it opens nothing elsewhere.
    """

    container_id: str
    project_id: str
    workspace_id: str | None
    runtime: str
    generation: int
    capability: str
    state: ContainerState
    since: datetime
    image: str | None = None
    spec: Json = field(default_factory=dict)
    agent: Json = field(default_factory=dict)
    error: Json | None = None


@dataclass(frozen=True, slots=True)
class SessionRow:
    session_id: str
    project_id: str
    workspace_id: str
    root_id: str
    depth: int
    title: str
    created_by: Json
    status: SessionStatus
    since: datetime
    model: str
    autonomy: Autonomy
    reasoning: Reasoning
    created_at: datetime
    updated_at: datetime
    parent_id: str | None = None
    external_id: str | None = None
    source: str | None = None
    schedule_id: str | None = None
    reason: Reason | None = None
    ending: Literal["completed", "cancelled"] | None = None
    """Set in the unit that begins an ``end`` or ``cancel``; from then on everything of this session is refused."""
    detached: bool = False
    hibernated: bool = False
    ended_at: datetime | None = None
    turn: int = 0
    """Number of the newest turn, queued ones included; turns count from 1."""
    agent_session_id: str | None = None
    settings: Json = field(default_factory=dict)
    """system, tools_allowed, tools_disallowed, timeout_minutes, caller tools: what was asked at spawn."""
    limits: Json = field(default_factory=dict)
    error: Json | None = None
    last_index: int = -1
    last_seq: int = -1
    """Only meaningful on a root: the newest ``seq`` of its tree."""

    @property
    def open(self) -> bool:
        return self.status in OPEN_STATUSES


@dataclass(frozen=True, slots=True)
class TurnRow:
    session_id: str
    turn: int
    status: TurnStatus
    sender: Json
    """SHAPES' ``from``."""
    prompt: str
    queued_at: datetime
    overrides: Json = field(default_factory=dict)
    """model, autonomy, reasoning, system, tools_allowed, tools_disallowed, timeout_minutes, at_most_minutes."""
    outcome: Outcome | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    first_index: int | None = None
    last_index: int | None = None
    final_text: str | None = None
    files: list[Json] = field(default_factory=list)
    error: Json | None = None
    agent_message_id: str | None = None
    tree_before: str | None = None
    tree_after: str | None = None
    results: list[Json] = field(default_factory=list)
    """What the session has left for its parent, as it was when the turn ended: [{path, bytes}]."""


@dataclass(frozen=True, slots=True)
class EventRow:
    """One durable event. ``body`` is the SHAPES event without session_id, index, seq, ts, turn and type."""

    session_id: str
    root_id: str
    project_id: str
    index: int
    seq: int
    ts: datetime
    type: EventType
    turn: int | None = None
    body: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to be appended. ``source`` (agent part id and state) makes a second append of the same one a no-op."""

    type: EventType
    turn: int | None = None
    body: Json = field(default_factory=dict)
    source: str | None = None
    ts: datetime | None = None


@dataclass(frozen=True, slots=True)
class RequestRow:
    """An ask of the agent (permission, question) or a caller tool call, from creation to resolution."""

    request_id: str
    session_id: str
    turn: int
    kind: RequestKind
    created_at: datetime
    expires_at: datetime
    on_expiry: Literal["reject", "pause"]
    body: Json | list[Json]
    """The one of ``permission``, ``questions``, ``caller_tool`` that ``kind`` names, as in SHAPES."""
    agent_ref: str
    """The agent's own id of the ask."""
    resolution: Json | None = None


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """Tokens and price of one model request, or a sum of many. ``cost_complete`` False: something had no price."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost_microusd: int = 0
    cost_complete: bool = True

    def plus(self, other: ModelUsage) -> ModelUsage:
        return ModelUsage(
            self.requests + other.requests,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.cost_microusd + other.cost_microusd,
            self.cost_complete and other.cost_complete,
        )

    def as_json(self) -> Json:
        """SHAPES' Usage."""
        return {
            "requests": self.requests,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "cache_read_tokens": self.cache_read_tokens,
            "cache_write_tokens": self.cache_write_tokens,
            "cost_usd": round(self.cost_microusd / 1_000_000, 6),
            "cost_complete": self.cost_complete,
        }


def session_id(at: datetime, random_hex: str) -> str:
    """``gogol_20261122_081530_1a2b3c4d``."""
    return f"gogol_{at:%Y%m%d_%H%M%S}_{random_hex[:8]}"


def rfc3339(at: datetime) -> str:
    """RFC 3339, UTC, milliseconds, ``Z``: the one spelling of times in everything we send."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"
