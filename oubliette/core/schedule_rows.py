"""Schedules, their targets and their runs as plain rows of the store. Pure; see ``model`` for the conventions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, Literal

from oubliette.core.model import Json


class RunStatus(StrEnum):
    CLAIMED = "claimed"
    """Its message is in a session's queue; the turn has not begun."""
    QUEUED = "queued"
    """It waits here, behind another run of its target or for room: no session has it yet."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    MISSED = "missed"
    CANCELLED = "cancelled"


OPEN_RUNS: Final = frozenset({RunStatus.CLAIMED, RunStatus.QUEUED, RunStatus.RUNNING})

Trigger = Literal["cron", "manual"]
Bound = Literal["pinned", "resumed", "replaced", "new"]
"""How a run came by its session: the pinned one as it was; opened again; another in its place; a new one."""

PauseReason = Literal[
    "failures",
    "token_revoked",
    "token_expired",
    "permission_denied",
    "project_deleted",
    "workspace_deleted",
    "invalid",
]
PAUSE_TEXTS: Final[dict[PauseReason, str]] = {
    "failures": "Several runs failed in a row.",
    "token_revoked": "The token that answers for its runs was revoked. Whoever enables it again answers for them.",
    "token_expired": "The token that answers for its runs has expired. Whoever enables it again answers for them.",
    "permission_denied": "The token that answers for its runs may not write to all of its targets.",
    "project_deleted": "The last project that it ran in was deleted.",
    "workspace_deleted": "A workspace that it ran in was deleted. Change its targets, or enable it again to go on in"
    " the project's default workspace.",
    "invalid": "Its cron expression or time zone is not known to this version any more.",
}


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """``accounted_until``: every occurrence up to then has its row. ``next_at``: the one after it, ``due_at``: that
    with its jitter; both None while it is disabled or paused.

    ``authority``: the token whose rights its runs have, that of whoever made or changed it last; None: the operator.
    """

    schedule_id: str
    name: str
    cron_expr: str
    timezone: str
    message: str
    enabled: bool
    overlap_behavior: str
    session_behavior: str
    misfire: str
    jitter_seconds: int
    pause_after_failures: int
    created_at: datetime
    updated_at: datetime
    created_by: Json
    accounted_until: datetime
    authority: str | None = None
    model: str | None = None
    max_cost_microusd: int | None = None
    timeout_minutes: float | None = None
    paused: Json | None = None
    """SHAPES' ``paused``: reason, since, text."""
    next_at: datetime | None = None
    due_at: datetime | None = None
    last_run_at: datetime | None = None

    @property
    def active(self) -> bool:
        return self.enabled and self.paused is None


@dataclass(frozen=True, slots=True)
class TargetRow:
    """``workspace_id`` None: the project's default one. ``session_id``: the pinned session, once there is one."""

    target_id: str
    schedule_id: str
    project_id: str
    position: int
    workspace_id: str | None = None
    session_id: str | None = None
    consecutive_failures: int = 0


@dataclass(frozen=True, slots=True)
class RunRow:
    """One occurrence of one target, or a gap of missed ones (``planned_at`` to ``until``, ``missed_count`` of them).

    ``missed_count`` of any other run: the occurrences before it that it stands for. ``authority``: of a manual run, as
    on the schedule. ``held_since``: it has waited for room from then on.
    """

    run_id: str
    schedule_id: str
    target_id: str
    project_id: str
    trigger: str
    planned_at: datetime
    claimed_at: datetime
    status: RunStatus
    workspace_id: str | None = None
    authority: str | None = None
    reason: str | None = None
    missed_count: int = 0
    until: datetime | None = None
    held_since: datetime | None = None
    session_id: str | None = None
    session: str | None = None
    turn: int | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    output: str | None = None
    output_bytes: int | None = None
    usage: Json | None = None
    error: Json | None = None

    @property
    def open(self) -> bool:
        return self.status in OPEN_RUNS
