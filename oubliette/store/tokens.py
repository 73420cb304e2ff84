"""Tokens: who may call. Only the SHA-256 of a secret is here."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from oubliette.core.principals import TokenRow
from oubliette.errors import RequestError
from oubliette.store import cursors
from oubliette.store.codec import Table, to_micros
from oubliette.store.database import Tx

TOPIC: Final = "tokens"
"""``Store.hear`` of it: the token with that id is new, or has ended."""

_TOKENS = Table("tokens", TokenRow)


def create(tx: Tx, row: TokenRow, secret_hash: bytes) -> None:
    """Raises RequestError conflict when a live token (not revoked, not expired) has this name."""
    taken = tx.rows(
        "SELECT 1 FROM tokens WHERE name = ? AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?)",
        row.name,
        to_micros(row.created_at),
    )
    if taken:
        hint = "Revoke it first, or choose another name."
        raise RequestError("conflict", f"There is a token named {row.name!r} already.", field="name", hint=hint)
    _TOKENS.insert(tx, row, secret_hash=secret_hash)
    tx.tell(TOPIC, row.token_id)


def by_hash(tx: Tx, secret_hash: bytes) -> TokenRow | None:
    """Revoked and expired ones too: the caller looks."""
    return _TOKENS.find(tx, "WHERE t.secret_hash = ?", secret_hash)


def get(tx: Tx, id_or_name: str) -> TokenRow | None:
    """By id, else by name: the live one of that name before revoked ones, the newest first."""
    return _TOKENS.find(tx, "WHERE t.token_id = ?", id_or_name) or _TOKENS.find(
        tx, "WHERE t.name = ? ORDER BY t.revoked_at IS NOT NULL, t.created_at DESC, t.token_id DESC LIMIT 1", id_or_name
    )


def list_page(
    tx: Tx, limit: int, cursor: str | None = None, *, bound_to: str = ""
) -> tuple[list[TokenRow], str | None]:
    """Newest first, revoked ones included. ``bound_to`` is the principal that a cursor is good for."""
    filters = ["tokens", bound_to]
    where, args = "", []
    if cursor is not None:
        where = "WHERE (t.created_at, t.token_id) < (?, ?) "
        args = cursors.decode(cursor, filters, (int, str))
    rows = _TOKENS.list(tx, where + "ORDER BY t.created_at DESC, t.token_id DESC LIMIT ?", *args, limit + 1)
    return cursors.page(rows, limit, lambda row: (to_micros(row.created_at), row.token_id), filters)


def revoke(tx: Tx, token_id: str, at: datetime) -> bool:
    """With everything that it has lent to agents. False when there is none, or it was revoked before."""
    micros = to_micros(at)
    tx.run(
        "UPDATE tokens SET revoked_at = ?"
        " WHERE kind = 'agent' AND json_extract(created_by, '$.id') = ? AND revoked_at IS NULL",
        micros,
        token_id,
    )
    changed = tx.run("UPDATE tokens SET revoked_at = ? WHERE token_id = ? AND revoked_at IS NULL", micros, token_id)
    tx.tell(TOPIC, token_id)
    return changed == 1


def answering(tx: Tx) -> list[TokenRow]:
    """Those that answer for the runs of schedules which are not paused, ended ones included."""
    return _TOKENS.list(
        tx, "WHERE t.token_id IN (SELECT authority FROM schedules WHERE paused IS NULL AND authority IS NOT NULL)"
    )


def succeed(tx: Tx, old_id: str, new_id: str, at: datetime) -> None:
    """A token takes the place of another, which is revoked: what that one has lent to agents is the new one's."""
    tx.run(
        "UPDATE tokens SET created_by = json_set(created_by, '$.id', ?)"
        " WHERE kind = 'agent' AND json_extract(created_by, '$.id') = ?",
        new_id,
        old_id,
    )
    revoke(tx, old_id, at)


def touch(tx: Tx, token_id: str, at: datetime) -> None:
    """Note that it was used; never goes back in time."""
    micros = to_micros(at)
    tx.run(
        "UPDATE tokens SET last_used_at = ? WHERE token_id = ? AND (last_used_at IS NULL OR last_used_at < ?)",
        micros,
        token_id,
        micros,
    )
