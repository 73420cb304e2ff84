"""The one SQLite file: a single writer that commits units in groups, and readers that never wait for it.

A *unit* is a plain function ``unit(tx) -> T`` run in a savepoint of its own; all queued units share one IMMEDIATE
transaction per thread hop. A unit that raises rolls back alone. When the transaction fails, all its units raise and
nothing is published.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import apsw
import trio

from oubliette.core.model import EventRow
from oubliette.errors import StoreError
from oubliette.store.schema import open_reader, open_writer

T = TypeVar("T")
Publish = Callable[[Sequence[EventRow]], None]


@dataclass(frozen=True, slots=True)
class _Told:
    """News for those who hear of a topic."""

    topic: str
    subject: str


_Effect = EventRow | _Told | Callable[[], None]

READERS = 4
"""Reading connections, and so reads at once: enough to hide one slow scan, few enough for two cores."""

_NAMED_STATEMENTS = 2_000
"""Column names are remembered for that many statements; lists of ids make new statement texts."""


class Tx:
    """What a unit works with. Not kept after the unit returns."""

    __slots__ = ("_columns", "_db", "_effects")

    def __init__(self, db: apsw.Connection, columns: dict[str, tuple[str, ...]], effects: list[_Effect] | None) -> None:
        self._db = db
        self._columns = columns
        self._effects = effects

    def rows(self, sql: str, *args: Any) -> list[tuple[Any, ...]]:
        """Rows as tuples: the cheapest way to read."""
        return self._db.execute(sql, args).fetchall()

    def all(self, sql: str, *args: Any) -> list[dict[str, Any]]:
        """Rows as dictionaries."""
        cursor = self._db.execute(sql, args)
        names: tuple[str, ...] | None = None
        found = []
        for row in cursor:
            if names is None:
                names = self._names(sql, cursor)
            found.append(dict(zip(names, row, strict=True)))
        return found

    def one(self, sql: str, *args: Any) -> dict[str, Any] | None:
        """The first row, or None."""
        cursor = self._db.execute(sql, args)
        for row in cursor:
            names = self._names(sql, cursor)
            cursor.close()
            return dict(zip(names, row, strict=True))
        return None

    def run(self, sql: str, *args: Any) -> int:
        """Execute; returns the number of changed rows."""
        self._db.execute(sql, args).fetchall()
        return self._db.changes()

    def attempt(self, part: Callable[[Tx], T]) -> T:
        """A part of a unit that may fail by itself: when it raises, what it wrote and would have told is undone."""
        effects = self._writing()
        told = len(effects)
        self._db.execute("SAVEPOINT part")
        try:
            result = part(self)
        except BaseException:
            del effects[told:]
            self._db.execute("ROLLBACK TO part")
            self._db.execute("RELEASE part")
            raise
        self._db.execute("RELEASE part")
        return result

    @property
    def intact(self) -> bool:
        """Whether what the unit has written so far still stands; for who goes on after a failed ``attempt``. SQLite
        itself undoes everything when it runs out of disk or memory: then the unit must raise."""
        return self._db.in_transaction

    def publish(self, event: EventRow) -> None:
        """Hand an appended event to subscribers once (and only if) this transaction has committed, in commit order."""
        self._writing().append(event)

    def after_commit(self, action: Callable[[], None]) -> None:
        """Run a quick synchronous action on the Trio thread after the commit, in order with published events."""
        self._writing().append(action)

    def tell(self, topic: str, subject: str = "") -> None:
        """Let everybody who hears of ``topic`` (``Store.hear``) know after the commit, in order with published
        events."""
        self._writing().append(_Told(topic, subject))

    def _writing(self) -> list[_Effect]:
        if self._effects is None:
            raise StoreError("a query may read only")
        return self._effects

    def _names(self, sql: str, cursor: apsw.Cursor) -> tuple[str, ...]:
        names = self._columns.get(sql)
        if names is None:
            if len(self._columns) >= _NAMED_STATEMENTS:
                self._columns.clear()
            names = self._columns[sql] = tuple(column[0] for column in cursor.get_description())
        return names


class _Job:
    """One queued unit and, once ``done``, what became of it."""

    __slots__ = ("done", "effects", "error", "result", "unit")

    def __init__(self, unit: Callable[[Tx], Any]) -> None:
        self.unit = unit
        self.done = trio.Event()
        self.effects: list[_Effect] = []
        self.result: Any = None
        self.error: Exception | None = None


class Store:
    """Handed to everybody who reads or writes. Made by ``open_store``."""

    def __init__(self, path: Path, publish: Publish, synchronous: str) -> None:
        """Opens the file; blocks."""
        self.path = path
        self._publish = publish
        self._db = open_writer(path, synchronous)
        self._idle: deque[tuple[apsw.Connection, dict[str, tuple[str, ...]]]] = deque()
        try:
            for _ in range(READERS):
                self._idle.append((open_reader(path), {}))
        except BaseException:
            self.close()
            raise
        self._columns: dict[str, tuple[str, ...]] = {}
        self._writers = trio.CapacityLimiter(1)
        self._readers = trio.CapacityLimiter(READERS)
        self._queue: list[_Job] = []
        self._hearers: dict[str, list[Callable[[str], None]]] = {}
        self._wake = trio.Event()
        self._closing = False
        self._broken: StoreError | None = None

    async def write(self, unit: Callable[[Tx], T]) -> T:
        """Queue a unit and wait for its commit. Cannot be cancelled once queued: the caller always learns the outcome.

        A checkpoint before queueing only: between the commit and the return nothing else of this task can happen.
        Raises what the unit raised, or StoreError when the database or the whole transaction failed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._broken is not None:
            raise StoreError("write to the store: its writer has failed") from self._broken
        if self._closing:
            raise StoreError("write to the store: it is closed")
        job = _Job(unit)
        self._queue.append(job)
        self._wake.set()
        with trio.CancelScope(shield=True):
            await job.done.wait()
        if job.error is not None:
            try:
                raise job.error
            finally:
                del job  # the traceback holds this frame: without the cycle the error is freed at once
        return job.result  # type: ignore[no-any-return]  # what the unit returned

    async def read(self, query: Callable[[Tx], T]) -> T:
        """Run a query on a reader's connection, in one snapshot: sees everything committed before the call."""
        if self._closing:
            raise StoreError("read from the store: it is closed")
        return await trio.to_thread.run_sync(self._query, query, limiter=self._readers)

    def _query(self, query: Callable[[Tx], T]) -> T:
        # The limiter has as many tokens as there are connections, so one is idle.
        reader = self._idle.pop()
        db, columns = reader
        try:
            db.execute("BEGIN")
            try:
                return query(Tx(db, columns, None))
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
        except apsw.Error as error:
            raise _translated("read from the store", error) from error
        finally:
            self._idle.append(reader)

    @contextmanager
    def hear(self, topic: str, hear: Callable[[str], None]) -> Iterator[None]:
        """Have ``hear`` called on the Trio thread with the subject of each ``Tx.tell`` of that topic, after its commit.
        It must be quick and not raise."""
        hearers = self._hearers.setdefault(topic, [])
        hearers.append(hear)
        try:
            yield
        finally:
            hearers.remove(hear)

    async def run_writer(self) -> None:
        """Commit what is queued until the store is closed and the queue is empty; returns by itself, deaf to cancels.

        Its own failure (a broken connection, a subscriber that raises) ends it with StoreError: fatal to the daemon.
        """
        batch: list[_Job] = []
        try:
            with trio.CancelScope(shield=True):
                while self._queue or not self._closing:
                    if not self._queue:
                        await self._wake.wait()
                        self._wake = trio.Event()
                        continue
                    batch, self._queue = self._queue, []
                    await trio.to_thread.run_sync(self._commit, batch, limiter=self._writers)
                    self._announce(batch)
                    if self._broken is not None:
                        raise self._broken
        except BaseException as error:
            self._broken = self._broken or StoreError(f"the store's writer failed: {error!r}")
            if isinstance(error, Exception) and error is not self._broken:
                raise self._broken from error
            raise
        finally:
            self._abandon([*batch, *self._queue])

    def _commit(self, batch: Sequence[_Job]) -> None:
        """One transaction for all of them, on the writer's thread."""
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            for job in batch:
                self._run_unit(job)
            db.execute("COMMIT")
        except apsw.Error as error:
            for job in batch:
                job.error = job.error or _caused("commit to the store", error)
                job.effects.clear()
            unusable = isinstance(error, (apsw.CorruptError, apsw.NotADBError))
            try:
                if db.in_transaction:
                    db.execute("ROLLBACK")
            except apsw.Error:
                unusable = True
            if unusable:
                self._broken = _caused("commit to the store", error)

    def _run_unit(self, job: _Job) -> None:
        db = self._db
        db.execute("SAVEPOINT unit")
        try:
            job.result = job.unit(Tx(db, self._columns, job.effects))
        except Exception as error:  # noqa: BLE001  # handed to the caller, whatever it is
            job.error = _caused("write to the store", error) if isinstance(error, apsw.Error) else error
            job.effects.clear()
            # Raises when SQLite has already rolled everything back (disk full): then the whole batch fails.
            db.execute("ROLLBACK TO unit")
        db.execute("RELEASE unit")

    def _announce(self, batch: Sequence[_Job]) -> None:
        """Tell subscribers, then callers. Nobody else of this loop runs in between."""
        try:
            events: list[EventRow] = []
            for job in batch:
                for effect in job.effects:
                    if isinstance(effect, EventRow):
                        events.append(effect)
                        continue
                    if events:
                        self._publish(events)
                        events = []
                    if isinstance(effect, _Told):
                        for hear in list(self._hearers.get(effect.topic, ())):
                            hear(effect.subject)
                    else:
                        effect()
            if events:
                self._publish(events)
        finally:
            for job in batch:
                job.done.set()

    def _abandon(self, jobs: Sequence[_Job]) -> None:
        """Let nobody wait for a writer that is gone."""
        for job in jobs:
            if not job.done.is_set():
                job.error = job.error or StoreError("write to the store: its writer has failed")
                job.done.set()

    def begin_close(self) -> None:
        """Refuse new work; what is queued is still written."""
        self._closing = True
        self._wake.set()

    def close(self) -> None:
        """Close every connection; blocks (the last one folds the write-ahead log into the file)."""
        while self._idle:
            self._idle.pop()[0].close()
        self._db.close()


@asynccontextmanager
async def open_store(path: Path, *, publish: Publish, synchronous: str = "FULL") -> AsyncIterator[Store]:
    """Open (create, migrate) the database; the writer runs until the context ends and drains what is queued.

    ``publish`` is called on the Trio thread with the events of each committed transaction, in order; it must not block.
    Raises StoreError: newer schema, not writable by us alone, damaged file; also from the body, when the writer failed.
    """
    store = await trio.to_thread.run_sync(Store, path, publish, synchronous)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run_writer)
            try:
                yield store
            finally:
                store.begin_close()
    except BaseExceptionGroup as group:
        # The nursery is ours, not the caller's: what the body raised leaves as it was raised.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from group.exceptions[0].__cause__
        raise
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(store.close)


def _caused(operation: str, error: apsw.Error) -> StoreError:
    """One for each caller: an exception raised in two tasks collects both tracebacks."""
    failure = _translated(operation, error)
    failure.__cause__ = error
    return failure


def _translated(operation: str, error: apsw.Error) -> StoreError:
    if isinstance(error, apsw.FullError):
        return StoreError(f"{operation}: the disk is full", code="storage_full", retryable=True)
    if isinstance(error, apsw.ReadOnlyError):
        return StoreError(f"{operation}: a query may read only: {error}")
    return StoreError(f"{operation}: {type(error).__name__}: {error}")
