"""The one SQLite file: a single writer that commits units in groups, and readers that never wait for it.

A *unit* is a plain function ``unit(tx) -> T`` run in a savepoint of its own; all queued units share one IMMEDIATE
transaction per thread hop. A unit that raises rolls back alone. When the transaction fails, all its units raise and
nothing is published.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import apsw

from oubliette.core.model import EventRow

T = TypeVar("T")


class Tx:
    """What a unit works with. Not kept after the unit returns."""

    def all(self, sql: str, *args: Any) -> list[dict[str, Any]]:
        """Rows as dictionaries."""
        raise NotImplementedError

    def one(self, sql: str, *args: Any) -> dict[str, Any] | None:
        """The first row, or None."""
        raise NotImplementedError

    def run(self, sql: str, *args: Any) -> int:
        """Execute; returns the number of changed rows."""
        raise NotImplementedError

    def publish(self, event: EventRow) -> None:
        """Hand an appended event to subscribers once (and only if) this transaction has committed, in commit order."""
        raise NotImplementedError

    def after_commit(self, action: Callable[[], None]) -> None:
        """Run a quick synchronous action on the Trio thread after the commit, in order with published events."""
        raise NotImplementedError


class Store:
    """Handed to everybody who reads or writes."""

    async def write(self, unit: Callable[[Tx], T]) -> T:
        """Queue a unit and wait for its commit. Cannot be cancelled once queued: the caller always learns the outcome."""
        raise NotImplementedError

    async def read(self, query: Callable[[Tx], T]) -> T:
        """Run a query on a reader's connection: sees everything committed before the call."""
        raise NotImplementedError


@asynccontextmanager
async def open_store(
    path: Path, *, publish: Callable[[Sequence[EventRow]], None], synchronous: str = "FULL"
) -> AsyncIterator[Store]:
    """Open (create, migrate) the database; the writer runs until the context ends and drains what is queued.

    ``publish`` is called on the Trio thread with the events of each committed transaction, in order; it must not block.
    Raises StoreError: newer schema, not writable by us alone, damaged file.
    """
    raise NotImplementedError
    yield  # pragma: no cover
