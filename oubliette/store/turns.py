"""Turns: one message each and what became of it. Numbered from 1 in each session."""

from __future__ import annotations

from typing import Any

from oubliette.core.model import TurnRow
from oubliette.store import cursors
from oubliette.store.codec import Table
from oubliette.store.database import Tx

_TURNS = Table("turns", TurnRow)


def insert(tx: Tx, row: TurnRow) -> None:
    _TURNS.insert(tx, row)


def get(tx: Tx, session_id: str, turn: int) -> TurnRow | None:
    return _TURNS.find(tx, "WHERE t.session_id = ? AND t.turn = ?", session_id, turn)


def last(tx: Tx, session_id: str) -> TurnRow | None:
    """The newest one that has begun (running or done)."""
    return _TURNS.find(tx, "WHERE t.session_id = ? AND t.status <> 'queued' ORDER BY t.turn DESC LIMIT 1", session_id)


def first_with_tree(tx: Tx, session_id: str) -> TurnRow | None:
    """The first one that has a snapshot of the work tree from before it began."""
    return _TURNS.find(tx, "WHERE t.session_id = ? AND t.tree_before IS NOT NULL ORDER BY t.turn LIMIT 1", session_id)


def next_queued(tx: Tx, session_id: str) -> TurnRow | None:
    return _TURNS.find(tx, "WHERE t.session_id = ? AND t.status = 'queued' ORDER BY t.turn LIMIT 1", session_id)


def queued_count(tx: Tx, session_id: str) -> int:
    return int(
        tx.rows(
            "SELECT count(*) FROM turns WHERE session_id = ? AND status <> 'done' AND status = 'queued'", session_id
        )[0][0]
    )


def running(tx: Tx, session_id: str) -> TurnRow | None:
    return _TURNS.find(tx, "WHERE t.session_id = ? AND t.status = 'running' ORDER BY t.turn LIMIT 1", session_id)


def list_page(
    tx: Tx, session_id: str, limit: int, cursor: str | None = None, *, bound_to: str = ""
) -> tuple[list[TurnRow], str | None]:
    """Newest first."""
    filters = ["turns", session_id, bound_to]
    where, args = "WHERE t.session_id = ? ", [session_id]
    if cursor is not None:
        where += "AND t.turn < ? "
        args += cursors.decode(cursor, filters, (int,))
    rows = _TURNS.list(tx, where + "ORDER BY t.turn DESC LIMIT ?", *args, limit + 1)
    return cursors.page(rows, limit, lambda row: (row.turn,), filters)


def update(tx: Tx, session_id: str, turn: int, **fields: Any) -> bool:
    """Set columns. False: there is none."""
    return _TURNS.update(tx, "session_id = ? AND turn = ?", [session_id, turn], fields) == 1
