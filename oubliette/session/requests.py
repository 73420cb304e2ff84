"""What callers ask of sessions, already parsed: plain values between the doors and the tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from oubliette.agent.base import Attachment
from oubliette.core.caller_tools import CallerTools
from oubliette.core.model import Autonomy, Reasoning


@dataclass(frozen=True, slots=True)
class RunBudget:
    """The turn is a run of its own: the tree's count of money and tokens begins anew with it.

    ``max_cost_usd`` None: the tree's own limit holds for the run.
    """

    max_cost_usd: float | None = None


@dataclass(frozen=True, slots=True)
class TurnArgs:
    """One message and what it overrides for its turn."""

    message: str
    model: str | None = None
    autonomy: Autonomy | None = None
    reasoning: Reasoning | None = None
    tools_allowed: Sequence[str] | None = None
    tools_disallowed: Sequence[str] | None = None
    system: str | None = None
    attachments: Sequence[Attachment] = ()
    timeout_minutes: float | None = None
    at_most_minutes: float | None = None
    """What the session that sends it has left: the turn gets no more, whatever its own limit."""
    request_key: str | None = None
    caller: CallerTools | None = None
    """Tools that the sender offers to the agent from now on."""
    run_budget: RunBudget | None = None
    """Only of messages that the daemon itself sends (schedules)."""


@dataclass(frozen=True, slots=True)
class SpawnArgs:
    """``project_id`` may be absent for principals whose scope names one."""

    turn: TurnArgs
    project_id: str | None = None
    workspace_id: str | None = None
    create_workspace: bool = False
    new_session: bool = False
    title: str | None = None
    context: str | None = None
    max_cost_usd: float | None = None
    external_id: str | None = None
    source: str | None = None
    workspace: Literal["parent", "new", "fork"] = "parent"
    detach: bool = False
    parent_id: str | None = None


@dataclass(frozen=True, slots=True)
class MessageArgs:
    """To one session: by id, or by place when exactly one fits."""

    turn: TurnArgs
    session_id: str | None = None
    project_id: str | None = None
    workspace_id: str | None = None
    delivery: Literal["queue", "interrupt"] = "queue"


@dataclass(frozen=True, slots=True)
class EventsArgs:
    session_id: str
    since_index: int = -1
    cursor: str | None = None
    max_events: int = 200
    include_children: bool = False
    types: Sequence[str] = field(default_factory=tuple)
    wait_seconds: float = 0
