"""``Tx.tell`` and ``Store.hear``: news of a topic, after the commit and only then."""

from __future__ import annotations

import pytest

from oubliette.store.database import Store, Tx


async def test_whoever_hears_of_a_topic_is_told_after_the_commit_and_before_the_writer_goes_on(store: Store) -> None:
    heard: list[str] = []

    def unit(tx: Tx) -> list[str]:
        tx.tell("birds", "crow")
        tx.tell("fish", "eel")
        tx.tell("birds", "jay")
        return list(heard)

    with store.hear("birds", heard.append):
        assert await store.write(unit) == [], "not before the commit"
        assert heard == ["crow", "jay"]
    await store.write(unit)
    assert heard == ["crow", "jay"], "not after the end of hearing"


async def test_nothing_is_told_of_a_unit_that_fails(store: Store) -> None:
    heard: list[str] = []

    def unit(tx: Tx) -> None:
        tx.tell("birds", "crow")
        raise LookupError("no")

    with store.hear("birds", heard.append):
        with pytest.raises(LookupError):
            await store.write(unit)
        await store.write(lambda tx: tx.tell("birds"))
    assert heard == [""]
