"""Tokens as values: how a secret looks, what is kept of it, how a token is shown. Pure; the randomness is given."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

from oubliette.core.model import Json, rfc3339
from oubliette.core.principals import Scope, TokenRow
from oubliette.errors import RequestError

SECRET_HEX = 64
ID_HEX = 24
CLI_NAME = "cli"
"""Of the admin token that the daemon makes for its own command line at each start."""


def secret_of(random_hex: str) -> str:
    """A token's secret from SECRET_HEX random digits; shown once."""
    return f"oub_{random_hex}"


def secret_hash(secret: str) -> bytes:
    """What the store keeps of a secret."""
    return hashlib.sha256(secret.encode()).digest()


def new_token(
    random_hex: str, *, name: str, scope: Scope, kind: str, at: datetime, by: Json, expires_in_days: float | None = None
) -> TokenRow:
    """The row of a token made now; ``random_hex`` are ID_HEX digits. Raises RequestError conflict for the name of the
    daemon's own token: a start could not make it then."""
    if name == CLI_NAME and kind != "cli":
        raise RequestError(
            "conflict", f"The name {CLI_NAME!r} is the daemon's own.", hint="Choose another name.", field="name"
        )
    expires_at = at + timedelta(days=expires_in_days) if expires_in_days is not None else None
    return TokenRow(f"tok_{random_hex}", name, str(scope), kind, at, by, expires_at=expires_at)


def token_shape(row: TokenRow) -> Json:
    """SHAPES' Token, without the secret."""
    shape: Json = {
        "token_id": row.token_id,
        "name": row.name,
        "scope": row.scope,
        "kind": row.kind,
        "created_at": rfc3339(row.created_at),
        "created_by": row.created_by,
    }
    for name in ("last_used_at", "expires_at", "revoked_at"):
        at: datetime | None = getattr(row, name)
        if at is not None:
            shape[name] = rfc3339(at)
    return shape
