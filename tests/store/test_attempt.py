"""Parts of a unit that may fail by themselves."""

from __future__ import annotations

import pytest

from oubliette.core.model import EventRow, EventType
from oubliette.errors import RequestError
from oubliette.store.database import Store, Tx
from tests.schedule.world import START
from tests.store.conftest import Published


def _event(index: int) -> EventRow:
    return EventRow("gogol_1", "gogol_1", "p", index, index, START, EventType.SYSTEM)


def _note(tx: Tx, name: str) -> None:
    tx.run("INSERT INTO meta (name, value) VALUES (?, '')", name)


async def test_a_part_that_raises_leaves_nothing_and_the_unit_goes_on(store: Store, published: Published) -> None:
    heard: list[str] = []

    def part(tx: Tx, fails: bool) -> str:
        _note(tx, f"part {fails}")
        tx.publish(_event(1))
        tx.tell("t", f"part {fails}")
        if fails:
            raise RequestError("conflict", "no")
        return "done"

    def unit(tx: Tx) -> str:
        _note(tx, "before")
        tx.publish(_event(0))
        with pytest.raises(RequestError):
            tx.attempt(lambda inner: part(inner, True))
        result = tx.attempt(lambda inner: part(inner, False))
        _note(tx, "after")
        return result

    with store.hear("t", heard.append):
        assert await store.write(unit) == "done"
    names = await store.read(lambda tx: [row[0] for row in tx.rows("SELECT name FROM meta ORDER BY rowid")])
    assert names[-3:] == ["before", "part False", "after"]
    assert [event.index for event in published.events] == [0, 1]
    assert heard == ["part False"]


async def test_a_part_of_a_part_and_a_unit_that_fails_after_all(store: Store, published: Published) -> None:
    def unit(tx: Tx) -> None:
        def outer(inner: Tx) -> None:
            inner.attempt(lambda deepest: _note(deepest, "deep"))
            _note(inner, "outer")

        tx.attempt(outer)
        tx.publish(_event(0))
        raise RequestError("conflict", "no")

    with pytest.raises(RequestError):
        await store.write(unit)
    names = await store.read(lambda tx: {row[0] for row in tx.rows("SELECT name FROM meta")})
    assert not names & {"deep", "outer"}
    assert published.events == []
