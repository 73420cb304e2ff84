"""The audit trail: who did what to which, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from oubliette.core.model import Json
from oubliette.store import cursors
from oubliette.store.codec import Table, to_json, to_micros
from oubliette.store.database import Tx


@dataclass(frozen=True, slots=True)
class AuditRow:
    audit_id: int
    ts: datetime
    principal: Json
    action: str
    outcome: str
    target: str | None = None
    request_id: str | None = None


_AUDIT = Table("audit", AuditRow)


def add(
    tx: Tx, *, principal: Json, action: str, target: str | None, outcome: str, request_id: str | None, ts: datetime
) -> None:
    tx.run(
        "INSERT INTO audit (ts, principal, action, target, outcome, request_id) VALUES (?, ?, ?, ?, ?, ?)",
        to_micros(ts),
        to_json(principal),
        action,
        target,
        outcome,
        request_id,
    )


def list_page(
    tx: Tx,
    *,
    limit: int,
    cursor: str | None = None,
    action: str | None = None,
    target: str | None = None,
    since: datetime | None = None,
    bound_to: str = "",
) -> tuple[list[AuditRow], str | None]:
    """Newest first."""
    filters = ["audit", action, target, since, bound_to]
    conditions: list[str] = []
    args: list[Any] = []
    for column, value in (("action", action), ("target", target)):
        if value is not None:
            conditions.append(f"t.{column} = ?")
            args.append(value)
    if since is not None:
        conditions.append("t.ts >= ?")
        args.append(to_micros(since))
    if cursor is not None:
        conditions.append("(t.ts, t.audit_id) < (?, ?)")
        args += cursors.decode(cursor, filters, (int, int))
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    rows = _AUDIT.list(tx, where + "ORDER BY t.ts DESC, t.audit_id DESC LIMIT ?", *args, limit + 1)
    return cursors.page(rows, limit, lambda row: (to_micros(row.ts), row.audit_id), filters)


def purge(tx: Tx, before: datetime) -> int:
    """Forget those made before; returns how many."""
    return tx.run("DELETE FROM audit WHERE ts < ?", to_micros(before))
