from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import apsw
import pytest
import trio
import trio.testing

from oubliette.core.model import EventRow
from oubliette.errors import RequestError, StoreError
from oubliette.store import events, meta, sessions
from oubliette.store.database import Store, Tx, open_store
from tests.store.conftest import Published
from tests.store.rows import message, place_with_session, session


def put(tx: Tx, name: str, value: str = "x") -> None:
    meta.put(tx, name, value)


def names(tx: Tx) -> list[str]:
    return [row[0] for row in tx.rows("SELECT name FROM meta ORDER BY name")]


async def test_a_read_sees_every_write_that_has_returned(store: Store) -> None:
    for number in range(50):
        await store.write(partial(put, name="n", value=str(number)))
        assert await store.read(partial(meta.get, name="n")) == str(number)


async def test_a_failing_unit_rolls_back_alone_within_its_group(store: Store) -> None:
    def failing(tx: Tx) -> None:
        put(tx, "lost")
        raise RequestError("conflict", "no")

    outcomes: dict[str, object] = {}

    async def run(name: str) -> None:
        try:
            outcomes[name] = await store.write(failing if name == "c" else partial(put, name=name))
        except RequestError as error:
            outcomes[name] = error.code

    async with trio.open_nursery() as nursery:
        for name in "abcde":
            nursery.start_soon(run, name)
    assert outcomes == {"a": None, "b": None, "c": "conflict", "d": None, "e": None}
    assert await store.read(names) == ["a", "b", "d", "e"]


async def test_units_that_are_queued_together_share_a_transaction(store: Store, published: Published) -> None:
    await store.write(place_with_session)
    release = trio.Event()

    def slow(tx: Tx) -> None:
        trio.from_thread.run_sync(release.set)
        time.sleep(0.05)

    async def append() -> None:
        await store.write(lambda tx: events.append(tx, "gogol_1", message()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.write, slow)
        await release.wait()
        for _ in range(100):
            nursery.start_soon(append)
    assert len(published.events) == 100
    assert published.batches == 1


async def test_an_error_of_sqlite_in_a_unit_is_the_callers_and_ours(store: Store) -> None:
    with pytest.raises(StoreError, match="ConstraintError") as caught:
        await store.write(lambda tx: tx.run("INSERT INTO meta (name) VALUES ('a')"))
    assert isinstance(caught.value.__cause__, apsw.ConstraintError)
    await store.write(partial(put, name="fine"))


async def test_a_failed_commit_raises_in_all_its_units_and_publishes_nothing(
    store: Store, published: Published
) -> None:
    await store.write(place_with_session)
    store._db.set_commit_hook(lambda: True)  # turns COMMIT into a rollback
    failures: list[StoreError] = []

    async def append() -> None:
        try:
            await store.write(lambda tx: events.append(tx, "gogol_1", message()))
        except StoreError as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(append)
    assert len(failures) == 5
    assert len(set(map(id, failures))) == 5
    store._db.set_commit_hook(None)
    assert published.events == []
    row = await store.write(lambda tx: events.append(tx, "gogol_1", message()))
    assert row is not None
    assert row.index == 0
    assert published.events == [row]


async def test_a_full_disk_is_said_as_storage_full_and_the_store_lives_on(store: Store) -> None:
    pages = store._db.pragma("page_count")
    store._db.pragma("max_page_count", pages + 4)

    def large(tx: Tx) -> None:
        put(tx, "large", "x" * 1_000_000)

    with pytest.raises(StoreError) as caught:
        await store.write(large)
    assert caught.value.code == "storage_full"
    store._db.pragma("max_page_count", 1_000_000)
    await store.write(large)
    assert await store.read(names) == ["large"]


async def test_a_queued_write_cannot_be_cancelled_and_its_caller_learns_the_outcome(store: Store) -> None:
    started = trio.Event()
    result = None

    def unit(tx: Tx) -> str:
        trio.from_thread.run_sync(started.set)
        time.sleep(0.05)
        put(tx, "written")
        return "done"

    async with trio.open_nursery() as nursery:

        async def caller() -> None:
            nonlocal result
            result = await store.write(unit)

        nursery.start_soon(caller)
        await started.wait()
        nursery.cancel_scope.cancel()
    assert result == "done"
    assert await store.read(names) == ["written"]


async def test_a_write_of_a_cancelled_caller_is_not_queued(store: Store) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.write(partial(put, name="never"))
    assert scope.cancelled_caught
    assert await store.read(names) == []


async def test_nothing_of_the_task_happens_between_commit_and_return(store: Store) -> None:
    """What spawn relies on: cancelled after the commit, the caller still gets to start what it has written."""
    with trio.CancelScope() as scope:
        await store.write(lambda tx: tx.after_commit(scope.cancel))
        reached = True
    assert reached
    assert not scope.cancelled_caught


class CancelAtStep(trio.abc.Instrument):
    """Cancels ``scope`` when ``task`` takes its n-th step."""

    def __init__(self, step: int) -> None:
        self.step, self.steps = step, 0
        self.task: trio.lowlevel.Task | None = None
        self.scope = trio.CancelScope()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.steps += 1
            if self.steps == self.step:
                self.scope.cancel()


async def test_a_write_cancelled_at_any_step_is_whole_and_known_to_its_caller(store: Store) -> None:
    for step in range(1, 10):
        instrument = CancelAtStep(step)
        told: list[str] = []

        async def target(instrument: CancelAtStep = instrument, told: list[str] = told, step: int = step) -> None:
            instrument.task = trio.lowlevel.current_task()
            with instrument.scope:
                trio.lowlevel.add_instrument(instrument)
                try:
                    await store.write(partial(put, name=str(step)))
                    told.append("written")
                finally:
                    trio.lowlevel.remove_instrument(instrument)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(target)
        assert (str(step) in await store.read(names)) is bool(told)
        assert not store._db.in_transaction
        if instrument.steps < step:
            return
    raise AssertionError("the sweep never came to its end")


async def test_events_are_published_in_commit_order_before_their_caller_goes_on(tmp_path: Path) -> None:
    seen: list[int] = []
    wrong: list[int] = []

    def publish(batch: Sequence[EventRow]) -> None:
        seen.extend(event.seq for event in batch)

    async with open_store(tmp_path / "db", publish=publish) as store:
        await store.write(place_with_session)

        async def append() -> None:
            for _ in range(20):
                row = await store.write(lambda tx: events.append(tx, "gogol_1", message()))
                if row is None or row.seq not in seen:
                    wrong.append(-1)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(append)
    assert seen == list(range(400))
    assert wrong == []


async def test_actions_after_a_commit_run_in_order_with_published_events(tmp_path: Path) -> None:
    order: list[object] = []

    def unit(tx: Tx) -> None:
        tx.after_commit(lambda: order.append("first"))
        events.append(tx, "gogol_1", message())
        events.append(tx, "gogol_1", message())
        tx.after_commit(lambda: order.append("last"))

    async with open_store(tmp_path / "db", publish=lambda batch: order.append(len(batch))) as store:
        await store.write(place_with_session)
        await store.write(unit)
    assert order == ["first", 2, "last"]


async def test_a_unit_that_raises_publishes_nothing(store: Store, published: Published) -> None:
    await store.write(place_with_session)
    done: list[str] = []

    def unit(tx: Tx) -> None:
        events.append(tx, "gogol_1", message())
        tx.after_commit(lambda: done.append("no"))
        raise RequestError("busy", "no")

    with pytest.raises(RequestError):
        await store.write(unit)
    assert published.events == []
    assert done == []


async def test_a_read_is_one_snapshot(store: Store) -> None:
    await store.write(partial(put, name="a"))
    reading, written = trio.Event(), trio.Event()

    def query(tx: Tx) -> tuple[list[str], list[str]]:
        before = names(tx)
        trio.from_thread.run_sync(reading.set)
        trio.from_thread.run(written.wait)
        return before, names(tx)

    results: list[tuple[list[str], list[str]]] = []

    async def read() -> None:
        results.append(await store.read(query))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await reading.wait()
        with trio.fail_after(5):
            await store.write(partial(put, name="b"))
        written.set()
    assert results == [(["a"], ["a"])]
    assert await store.read(names) == ["a", "b"]


async def test_many_readers_and_writers_at_once_see_only_whole_units(store: Store) -> None:
    def pair(tx: Tx, value: str) -> None:
        put(tx, "left", value)
        put(tx, "right", value)

    async def write(worker: int) -> None:
        for number in range(20):
            await store.write(partial(pair, value=f"{worker}-{number}"))

    torn: list[object] = []

    async def read() -> None:
        for _ in range(50):
            both = await store.read(lambda tx: (meta.get(tx, "left"), meta.get(tx, "right")))
            if both[0] != both[1]:
                torn.append(both)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for worker in range(8):
                nursery.start_soon(write, worker)
                nursery.start_soon(read)
    assert torn == []


async def test_a_query_cannot_write_or_publish(store: Store) -> None:
    with pytest.raises(StoreError, match="read only"):
        await store.read(partial(put, name="a"))
    with pytest.raises(StoreError, match="read only"):
        await store.read(lambda tx: tx.after_commit(lambda: None))
    assert await store.read(names) == []


async def test_the_failure_of_a_subscriber_ends_the_writer_and_everybody_learns_it(tmp_path: Path) -> None:
    def publish(batch: Sequence[EventRow]) -> None:
        raise ZeroDivisionError("a bug")

    reached = False
    with pytest.raises(StoreError, match="writer failed") as caught:
        async with open_store(tmp_path / "db", publish=publish) as store:
            await store.write(place_with_session)
            row = await store.write(lambda tx: events.append(tx, "gogol_1", message()))
            assert row is not None  # it was committed: its caller is told so
            with pytest.raises(StoreError, match="writer has failed"), trio.CancelScope(shield=True):
                await store.write(partial(put, name="too late"))
            reached = True
    assert reached
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_what_the_body_raises_leaves_unwrapped(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="as it is"):
        async with open_store(tmp_path / "db", publish=lambda _: None):
            raise RequestError("busy", "as it is")


async def test_what_is_queued_is_written_when_the_store_closes(tmp_path: Path) -> None:
    async with trio.open_nursery() as outside, open_store(tmp_path / "db", publish=lambda _: None) as store:
        for name in "abc":
            outside.start_soon(store.write, partial(put, name=name))
        await trio.testing.wait_all_tasks_blocked(0.001)
    async with open_store(tmp_path / "db", publish=lambda _: None) as store:
        assert await store.read(names) == ["a", "b", "c"]


async def test_a_closed_store_refuses_work(tmp_path: Path) -> None:
    async with open_store(tmp_path / "db", publish=lambda _: None) as store:
        pass
    with pytest.raises(StoreError, match="closed"):
        await store.write(partial(put, name="a"))
    with pytest.raises(StoreError, match="closed"):
        await store.read(names)


async def test_cancelling_the_owner_still_drains_and_closes(tmp_path: Path) -> None:
    with trio.move_on_after(5) as scope:
        async with open_store(tmp_path / "db", publish=lambda _: None) as store:
            await store.write(partial(put, name="kept"))
            scope.cancel()
            await trio.sleep_forever()
    async with open_store(tmp_path / "db", publish=lambda _: None) as store:
        assert await store.read(names) == ["kept"]


async def test_fifty_openings_leave_no_descriptors(tmp_path: Path) -> None:
    path = tmp_path / "db"
    async with open_store(path, publish=lambda _: None) as store:
        await store.write(partial(put, name="a"))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        async with open_store(path, publish=lambda _: None) as store:
            assert await store.read(names) == ["a"]
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_thousand_statements_with_other_texts_are_fine(store: Store) -> None:
    def query(tx: Tx) -> int:
        return sum(tx.one(f"SELECT {number} AS n")["n"] for number in range(2_500))  # type: ignore[index]

    assert await store.read(query) == sum(range(2_500))


async def test_dictionaries_carry_the_names_of_their_columns(store: Store) -> None:
    await store.write(place_with_session)
    await store.write(lambda tx: sessions.insert(tx, session("gogol_2")))
    rows = await store.read(lambda tx: tx.all("SELECT session_id AS id, depth FROM sessions ORDER BY 1"))
    assert rows == [{"id": "gogol_1", "depth": 0}, {"id": "gogol_2", "depth": 0}]
    assert await store.read(lambda tx: tx.one("SELECT 1 AS a WHERE 0")) is None
    assert await store.read(lambda tx: tx.all("SELECT 1 AS a WHERE 0")) == []
