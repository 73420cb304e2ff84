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
    ``patch`` is compressed (``pack``) and left out of what is read (``text_of``); ``patch_bytes`` is the full size of
    what it is the beginning of."""

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


def pack(text: str) -> bytes:
    """A patch as a row keeps it. Takes milliseconds: call it in a thread."""
    return zlib.compress(text.encode("utf-8", "replace"))


_CHANGES = Table("changes", ChangeRow)
_WITHOUT_PATCH = Table("changes", ChangeRow, computed={"patch": "x''"})
"""Patches are read one by one: those of a long session are more than anybody is shown."""


def text_of(tx: Tx, row: ChangeRow) -> str:
    """The patch, or its beginning."""
    found = tx.rows(
        "SELECT patch FROM changes WHERE session_id = ? AND turn = ? AND since_turn = ?",
        row.session_id,
        row.turn,
        row.since_turn,
    )
    return zlib.decompress(found[0][0]).decode() if found else ""


def keep(tx: Tx, row: ChangeRow) -> None:
    """A turn's own change; one since an earlier turn replaces the one that was kept before."""
    if row.since_turn != row.turn:
        tx.run("DELETE FROM changes WHERE session_id = ? AND since_turn <> turn", row.session_id)
    _CHANGES.insert(tx, row)


def of_turns(tx: Tx, session_id: str, since_turn: int) -> list[ChangeRow]:
    """Of each turn that changed something, oldest first."""
    return _WITHOUT_PATCH.list(
        tx, "WHERE t.session_id = ? AND t.since_turn = t.turn AND t.turn >= ? ORDER BY t.turn", session_id, since_turn
    )


def whole(tx: Tx, session_id: str) -> ChangeRow | None:
    """Since the first turn; None when only one turn changed something."""
    return _WITHOUT_PATCH.find(tx, "WHERE t.session_id = ? AND t.since_turn <> t.turn", session_id)
