"""Results of writes by their ``request_key``, so that a retry does not do it twice."""

from __future__ import annotations

import json
from datetime import datetime

from oubliette.core.model import Json
from oubliette.store.codec import to_json, to_micros
from oubliette.store.database import Tx


def find(tx: Tx, principal_id: str, tool: str, action: str, key: str) -> tuple[str, Json] | None:
    """(hash of the first call's arguments, its result)."""
    rows = tx.rows(
        "SELECT args_hash, result FROM request_keys WHERE principal_id = ? AND tool = ? AND action = ? AND key = ?",
        principal_id,
        tool,
        action,
        key,
    )
    return (rows[0][0], json.loads(rows[0][1])) if rows else None


def remember(
    tx: Tx, principal_id: str, tool: str, action: str, key: str, args_hash: str, result: Json, at: datetime
) -> None:
    """Keep a result, or complete one kept earlier under the same arguments (an intent, then what it led to)."""
    tx.run(
        "INSERT INTO request_keys (principal_id, tool, action, key, args_hash, result, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (principal_id, tool, action, key)"
        " DO UPDATE SET result = excluded.result WHERE args_hash = excluded.args_hash",
        principal_id,
        tool,
        action,
        key,
        args_hash,
        to_json(result),
        to_micros(at),
    )


def purge(tx: Tx, before: datetime) -> int:
    """Forget those made before; returns how many."""
    return tx.run("DELETE FROM request_keys WHERE created_at < ?", to_micros(before))
