"""Merges of forks into their parents' workspaces: a row before the answer, so that one outlives its call."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from oubliette.core.model import Json
from oubliette.store.codec import Table
from oubliette.store.database import Tx

KEPT = 20
"""So many are kept of a session."""


class MergeState(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class MergeRow:
    """``session_id`` is the fork's session, ``turn`` its newest one at that time. ``result`` holds what SHAPES does not
    find in the row; ``told``: somebody has been answered with the outcome."""

    merge_id: str
    session_id: str
    turn: int
    state: MergeState
    created_at: datetime
    created_by: Json
    ended_at: datetime | None = None
    told: bool = False
    result: Json | None = None
    error: Json | None = None


_MERGES = Table("merges", MergeRow)


def insert(tx: Tx, row: MergeRow) -> None:
    """Older ones than the newest few of the session are forgotten."""
    _MERGES.insert(tx, row)
    tx.run(
        "DELETE FROM merges WHERE session_id = ? AND state <> 'running' AND merge_id NOT IN"
        " (SELECT merge_id FROM merges WHERE session_id = ? ORDER BY created_at DESC, merge_id DESC LIMIT ?)",
        row.session_id,
        row.session_id,
        KEPT,
    )


def get(tx: Tx, merge_id: str) -> MergeRow | None:
    return _MERGES.find(tx, "WHERE t.merge_id = ?", merge_id)


def last(tx: Tx, session_id: str) -> MergeRow | None:
    """The newest of a session."""
    return _MERGES.find(tx, "WHERE t.session_id = ? ORDER BY t.created_at DESC, t.merge_id DESC LIMIT 1", session_id)


def running(tx: Tx) -> list[MergeRow]:
    """All that a restart finds unfinished, oldest first."""
    return _MERGES.list(tx, "WHERE t.state = 'running' ORDER BY t.created_at")


def update(tx: Tx, merge_id: str, **fields: Any) -> bool:
    """Set columns. False: there is none."""
    return _MERGES.update(tx, "merge_id = ?", [merge_id], fields) == 1
