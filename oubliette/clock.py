"""The wall clock and fresh randomness, the two things that ``core`` may not reach for itself."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime


def now() -> datetime:
    """The present moment, aware, UTC."""
    return datetime.now(UTC)


def fresh_hex(length: int) -> str:
    """``length`` random hexadecimal digits, fit for identifiers and secrets."""
    return secrets.token_hex((length + 1) // 2)[:length]
