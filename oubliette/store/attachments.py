"""The files that came with a message, kept apart from its turn: they may be 20 MiB and are read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oubliette.store.database import Tx


@dataclass(frozen=True, slots=True)
class AttachmentRow:
    filename: str
    content_type: str
    data: bytes


def insert(tx: Tx, session_id: str, turn: int, files: Sequence[AttachmentRow]) -> None:
    """Keep the files of a turn that has just been inserted."""
    for position, file in enumerate(files):
        tx.run(
            "INSERT INTO attachments (session_id, turn, position, filename, content_type, data)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            session_id,
            turn,
            position,
            file.filename,
            file.content_type,
            file.data,
        )


def for_turn(tx: Tx, session_id: str, turn: int) -> list[AttachmentRow]:
    """In the order in which they were given."""
    found = tx.rows(
        "SELECT filename, content_type, data FROM attachments WHERE session_id = ? AND turn = ? ORDER BY position",
        session_id,
        turn,
    )
    return [AttachmentRow(*row) for row in found]
