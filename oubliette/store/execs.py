"""Commands run by ``container exec``: a row before the answer, so that one outlives the call that began it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from oubliette.core.model import Json
from oubliette.store.codec import Table
from oubliette.store.database import Tx


class ExecState(StrEnum):
    RUNNING = "running"
    DONE = "done"
    KILLED = "killed"


@dataclass(frozen=True, slots=True)
class ExecRow:
    """``command`` is the argument vector. Output is what was kept; ``_bytes`` are the full sizes."""

    exec_id: str
    project_id: str
    workspace_id: str | None
    command: list[str]
    state: ExecState
    created_at: datetime
    created_by: Json
    container_id: str | None = None
    working_dir: str | None = None
    ended_at: datetime | None = None
    exit_code: int | None = None
    stdout: str = ""
    stdout_bytes: int = 0
    stderr: str = ""
    stderr_bytes: int = 0
    timed_out: bool = False
    error: Json | None = None


_EXECS = Table("execs", ExecRow)


def insert(tx: Tx, row: ExecRow) -> None:
    _EXECS.insert(tx, row)


def get(tx: Tx, exec_id: str) -> ExecRow | None:
    return _EXECS.find(tx, "WHERE t.exec_id = ?", exec_id)


def running(tx: Tx) -> list[ExecRow]:
    """All that a restart finds unfinished, oldest first."""
    return _EXECS.list(tx, "WHERE t.state = 'running' ORDER BY t.created_at")


def update(tx: Tx, exec_id: str, **fields: Any) -> bool:
    """Set columns. False: there is none."""
    return _EXECS.update(tx, "exec_id = ?", [exec_id], fields) == 1


def purge(tx: Tx, before_micros: int) -> int:
    """Forget finished ones begun before (microseconds since 1970); returns how many."""
    return tx.run("DELETE FROM execs WHERE state <> 'running' AND created_at < ?", before_micros)
