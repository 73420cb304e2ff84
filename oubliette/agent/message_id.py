"""Message ids in OpenCode's own scheme."""

from __future__ import annotations

import secrets
import time

_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_newest = 0


def new_message_id() -> str:
    """``msg_`` and 26 characters, ascending: 12 hexadecimal digits of the time in 1/4096 ms, 14 random ones.

    Make it when the turn begins. Version 1.18.33 answers a message whatever its id (an older id, or one from the
    future, was tried), but others compare ids to see whether a message has its answer already.
    """
    global _newest
    _newest = max(_newest + 1, time.time_ns() * 4096 // 1_000_000)
    stamp = (_newest & 0xFFFF_FFFF_FFFF).to_bytes(6, "big").hex()
    return f"msg_{stamp}{''.join(secrets.choice(_LETTERS) for _ in range(14))}"
