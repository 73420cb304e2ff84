"""What turns changed in the work tree, written as they end: a diff is a read of these."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from oubliette.core.model import Json
from oubliette.store.codec import Table
from oubliette.store.database import Tx


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """From before ``since_turn`` to after ``turn``. ``base`` and ``head`` name trees, ``files`` are FileChanges,
    ``patch`` is compressed (``pack``); ``patch_bytes`` is the full size of what it is the beginning of."""

    session_id: str
    since_turn: int
    turn: int
    base: str
    head: str
    files: list[Json]
    files_truncated: bool
    patch: bytes
    patch_bytes: int
    patch_truncated: bool

    @property
    def text(self) -> str:
        return zlib.decompress(self.patch).decode()


def pack(text: str) -> bytes:
    """A patch as a row keeps it."""
    return zlib.compress(text.encode("utf-8", "replace"))


_CHANGES = Table("changes", ChangeRow)


def keep(tx: Tx, row: ChangeRow) -> None:
    """A turn's own change; one since an earlier turn replaces the one that was kept before."""
    if row.since_turn != row.turn:
        tx.run("DELETE FROM changes WHERE session_id = ? AND since_turn <> turn", row.session_id)
    _CHANGES.insert(tx, row)


def of_turns(tx: Tx, session_id: str, since_turn: int) -> list[ChangeRow]:
    """Of each turn that changed something, oldest first."""
    return _CHANGES.list(
        tx, "WHERE t.session_id = ? AND t.since_turn = t.turn AND t.turn >= ? ORDER BY t.turn", session_id, since_turn
    )


def whole(tx: Tx, session_id: str) -> ChangeRow | None:
    """Since the first turn; None when only one turn changed something."""
    return _CHANGES.find(tx, "WHERE t.session_id = ? AND t.since_turn <> t.turn", session_id)
