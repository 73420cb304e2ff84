"""Asks of agents and caller tool calls, from creation to their one resolution."""

from __future__ import annotations

from datetime import datetime

from oubliette.core.model import Json, RequestRow
from oubliette.store.codec import Table, to_json, to_micros
from oubliette.store.database import Tx

_REQUESTS = Table("requests", RequestRow)


def insert(tx: Tx, row: RequestRow) -> None:
    _REQUESTS.insert(tx, row)


def get(tx: Tx, request_id: str) -> RequestRow | None:
    return _REQUESTS.find(tx, "WHERE t.request_id = ?", request_id)


def by_agent_ref(tx: Tx, session_id: str, agent_ref: str) -> RequestRow | None:
    """The newest one that the agent calls so."""
    return _REQUESTS.find(
        tx,
        "WHERE t.session_id = ? AND t.agent_ref = ? ORDER BY t.created_at DESC, t.request_id DESC LIMIT 1",
        session_id,
        agent_ref,
    )


def pending(tx: Tx, session_id: str) -> list[RequestRow]:
    """Unresolved, oldest first."""
    # The plus keeps SQLite to the index of what is pending: a session may have many more that were settled.
    return _REQUESTS.list(
        tx, "WHERE +t.session_id = ? AND t.resolution IS NULL ORDER BY t.created_at, t.request_id", session_id
    )


def resolve(tx: Tx, request_id: str, resolution: Json) -> tuple[bool, RequestRow | None]:
    """Set the resolution unless there is one: (whether this one won, the row as it now is). None: no such request."""
    won = tx.run(
        "UPDATE requests SET resolution = ? WHERE request_id = ? AND resolution IS NULL",
        to_json(resolution),
        request_id,
    )
    return won == 1, get(tx, request_id)


def due(tx: Tx, at: datetime) -> list[RequestRow]:
    """Unresolved ones whose deadline has come, the most overdue first."""
    return _REQUESTS.list(
        tx, "WHERE t.resolution IS NULL AND t.expires_at <= ? ORDER BY t.expires_at, t.request_id", to_micros(at)
    )


def next_expiry(tx: Tx) -> int | None:
    """When the next unresolved one is due, in microseconds since 1970; None: nothing is pending."""
    value: int | None = tx.rows("SELECT min(expires_at) FROM requests WHERE resolution IS NULL")[0][0]
    return value
