"""What the database knows about itself."""

from __future__ import annotations

import uuid

from oubliette.store.database import Tx


def instance_id(tx: Tx) -> str:
    """This installation's id, made once: what its containers are labelled with. Needs a writing unit the first time."""
    found = get(tx, "instance_id")
    if found is None:
        found = str(uuid.uuid4())
        put(tx, "instance_id", found)
    return found


def get(tx: Tx, name: str) -> str | None:
    rows = tx.rows("SELECT value FROM meta WHERE name = ?", name)
    return rows[0][0] if rows else None


def put(tx: Tx, name: str, value: str) -> None:
    tx.run(
        "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        name,
        value,
    )
