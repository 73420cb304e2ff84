"""What callers ask of schedules, already parsed: plain values between the doors and this room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

Overlap = Literal["skip", "queue", "parallel"]
SessionBehavior = Literal["resume", "new"]
Misfire = Literal["skip", "once"]


class Unset(Enum):
    """The type of ``UNSET``."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET
"""Marks what an update leaves as it is; None takes an optional value away."""


@dataclass(frozen=True, slots=True)
class TargetArgs:
    """Where a schedule runs; without a workspace: the project's default one."""

    project_id: str
    workspace_id: str | None = None


@dataclass(frozen=True, slots=True)
class ScheduleArgs:
    """``pause_after_failures`` 0: never. ``max_cost_usd`` is of one run; ``timeout_minutes`` begin with its turn."""

    name: str
    cron_expr: str
    message: str
    targets: Sequence[TargetArgs]
    timezone: str = "UTC"
    enabled: bool = True
    overlap_behavior: Overlap = "skip"
    session_behavior: SessionBehavior = "resume"
    misfire: Misfire = "skip"
    jitter_seconds: int = 0
    model: str | None = None
    max_cost_usd: float | None = None
    timeout_minutes: float | None = None
    pause_after_failures: int = 3


@dataclass(frozen=True, slots=True)
class ScheduleChanges:
    """``enabled`` True also ends a pause. Targets that stay keep their id and their pinned session."""

    name: str | Unset = UNSET
    cron_expr: str | Unset = UNSET
    message: str | Unset = UNSET
    targets: Sequence[TargetArgs] | Unset = UNSET
    timezone: str | Unset = UNSET
    enabled: bool | Unset = UNSET
    overlap_behavior: Overlap | Unset = UNSET
    session_behavior: SessionBehavior | Unset = UNSET
    misfire: Misfire | Unset = UNSET
    jitter_seconds: int | Unset = UNSET
    model: str | Unset | None = UNSET
    max_cost_usd: float | Unset | None = UNSET
    timeout_minutes: float | Unset | None = UNSET
    pause_after_failures: int | Unset = UNSET
