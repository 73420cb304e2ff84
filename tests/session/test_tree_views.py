"""Trees as clients see them: what a page holds, what growth does to pages, how long a large one takes."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from oubliette.core.model import Json, Outcome, RequestKind, RequestRow, SessionStatus, TurnStatus
from oubliette.core.shapes import Tree
from oubliette.errors import RequestError
from oubliette.session.limit_views import limits_view
from oubliette.session.tree_views import tree_view
from oubliette.store import budgets, requests, sessions, turns
from oubliette.store.budgets import Reservation
from oubliette.store.database import Store, Tx, open_store
from tests.store import rows

ROOT = "gogol_root"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "oubliette.db", publish=lambda _: None) as opened:
        await opened.write(rows.place)
        await opened.write(lambda tx: sessions.insert(tx, rows.session(ROOT, limits={"max_agents_per_session": 50})))
        yield opened


def child(tx: Tx, name: str, parent: str, depth: int, **more: Any) -> None:
    row = rows.session(name, parent_id=parent, root_id=ROOT, depth=depth, **more)
    sessions.insert(tx, row)


async def add(store: Store, name: str, parent: str = ROOT, depth: int = 1, **more: Any) -> None:
    await store.write(partial(child, name=name, parent=parent, depth=depth, **more))


async def view(
    store: Store, of: str = ROOT, *, subtree: bool = False, limit: int = 50, cursor: str | None = None
) -> Json:
    def look(tx: Tx) -> Json:
        row = sessions.get(tx, of)
        assert row is not None
        return tree_view(tx, row, subtree=subtree, limit=limit, cursor=cursor, bound_to="tok_1")

    shape = await store.read(look)
    Tree.model_validate(shape)
    return shape


def names(shape: Json) -> list[str]:
    return [node["session_id"] for node in shape["nodes"]]


async def test_a_tree_is_flat_and_depth_first_with_siblings_in_the_order_in_which_they_were_made(store: Store) -> None:
    await add(store, "a")
    await add(store, "b")
    await add(store, "a1", "a", 2)
    await add(store, "b1", "b", 2)
    await add(store, "a2", "a", 2)
    await add(store, "a1x", "a1", 3)
    await add(store, "c")
    shape = await view(store)
    assert names(shape) == [ROOT, "a", "a1", "a1x", "a2", "b", "b1", "c"]
    assert [node["depth"] for node in shape["nodes"]] == [0, 1, 2, 3, 2, 1, 2, 1]
    assert "parent_id" not in shape["nodes"][0]
    assert shape["nodes"][3]["parent_id"] == "a1"
    assert (await view(store, "a1x"))["nodes"] == shape["nodes"], "whichever session of it is named"
    assert names(await view(store, "a", subtree=True)) == ["a", "a1", "a1x", "a2"]
    assert names(await view(store, "c", subtree=True)) == ["c"]


async def test_a_node_says_how_its_session_stands(store: Store) -> None:
    later = rows.AT + timedelta(seconds=90)

    def write(tx: Tx) -> None:
        child(tx, "done", ROOT, 1, turn=2, title="Add JWT auth", model="haiku")
        done = {"status": TurnStatus.DONE, "started_at": rows.AT, "ended_at": later}
        turns.insert(tx, rows.turn("done", 1, outcome=Outcome.FAILED, **done))
        turns.insert(tx, rows.turn("done", 2, outcome=Outcome.COMPLETED, **done))
        child(tx, "busy", ROOT, 1, turn=1, status=SessionStatus.WAITING, reason="question")
        turns.insert(tx, rows.turn("busy", 1, status=TurnStatus.RUNNING, started_at=later))
        ask = RequestRow("req_1", "busy", 1, RequestKind.QUESTION, rows.AT, later, "reject", [], "x")
        requests.insert(tx, ask)
        child(tx, "over", ROOT, 1, status=SessionStatus.FAILED, ended_at=later)
        rows.spend(tx, ROOT, 1, 100)
        for name, cost in (("done", 2_000_000), ("done", 500_000), ("busy", 1)):
            rows.spend(tx, name, 1, cost)
        tx.run("UPDATE model_requests SET root_id = ?", ROOT)

    await store.write(write)
    shape = await view(store)
    root, done, busy, over = shape["nodes"]
    assert done["title"] == "Add JWT auth"
    assert (done["status"], done["outcome"], done["turn"], done["model"]) == ("idle", "completed", 2, "haiku")
    assert done["started_at"] == "2026-11-22T08:15:30.123Z"
    assert done["ended_at"] == "2026-11-22T08:17:00.123Z", "it rests: its last turn has ended"
    assert (done["usage"]["requests"], done["usage"]["cost_usd"]) == (2, 2.5)
    assert (busy["status"], busy["reason"], busy["pending"]) == ("waiting", "question", 1)
    assert not {"outcome", "ended_at"} & set(busy)
    assert (over["status"], over["ended_at"]) == ("failed", "2026-11-22T08:17:00.123Z")
    assert root["usage"]["cost_usd"] == 0.0001
    assert shape["usage"]["cost_usd"] == 2.500101
    counts = {name: number for name, number in shape["counts"].items() if number}
    assert counts == {"total": 4, "open": 3, "waiting": 1, "idle": 2, "failed": 1}
    assert shape["limits"]["agents"] == {"limit": 50, "used": 4, "remaining": 46}
    assert shape["limits"]["depth"] == {"used": 1}, "no limit, nothing that remains"
    below = await view(store, "busy", subtree=True)
    assert below["usage"]["requests"] == 1
    assert below["counts"]["total"] == 1
    assert below["limits"]["agents"] == shape["limits"]["agents"], "limits are the tree's"


async def test_pages_hold_every_session_once_while_the_tree_grows_between_them(store: Store) -> None:
    made = [(ROOT, 0)]
    for seed in range(12):
        chance = random.Random(seed)
        for _ in range(5):
            await grow(store, made, chance)
        before = {name for name, _ in made}
        seen: list[str] = []
        cursor: str | None = None
        growing = 8
        while True:
            shape = await view(store, limit=chance.choice((1, 3, 7)), cursor=cursor)
            seen += names(shape)
            cursor = shape.get("next_cursor")
            if cursor is None:
                break
            if growing:
                growing -= 1
                await grow(store, made, chance)
        assert len(seen) == len(set(seen)), "nothing twice"
        assert before <= set(seen), "and everything that was there when the reading began"


async def grow(store: Store, made: list[tuple[str, int]], chance: random.Random) -> None:
    parent, depth = chance.choice(made)
    name = f"g{len(made)}"
    await add(store, name, parent, depth + 1)
    made.append((name, depth + 1))


async def test_a_cursor_is_good_for_its_own_tree_and_reader(store: Store) -> None:
    for name in ("a", "b"):
        await add(store, name)
        await add(store, name + "1", name, 2)
        await add(store, name + "2", name, 2)
    whole = (await view(store, limit=2))["next_cursor"]
    part = (await view(store, "a", subtree=True, limit=2))["next_cursor"]
    assert names(await view(store, "b", cursor=whole, limit=2)) == ["a1", "a2"]
    for of, subtree, cursor in (("a", True, whole), ("b", True, part), (ROOT, False, part), (ROOT, False, "AAAA")):
        with pytest.raises(RequestError) as caught:
            await view(store, of, subtree=subtree, cursor=cursor)
        assert caught.value.code == "invalid_cursor"
    await store.write(lambda tx: sessions.delete(tx, "a1"))
    with pytest.raises(RequestError) as caught:
        await view(store, "a", subtree=True, cursor=part)
    assert caught.value.code == "invalid_cursor"
    assert names(await view(store, "a", subtree=True)) == ["a", "a2"]


async def test_two_hundred_sessions_take_a_handful_of_queries(store: Store) -> None:
    def plant(tx: Tx) -> None:
        for number in range(199):
            child(tx, f"n{number:03d}", ROOT if number < 20 else f"n{number % 20:03d}", 1 if number < 20 else 2, turn=1)
            done = {"status": TurnStatus.DONE, "outcome": Outcome.COMPLETED, "started_at": rows.AT}
            turns.insert(tx, rows.turn(f"n{number:03d}", 1, **done))
            for _ in range(20):
                rows.spend(tx, f"n{number:03d}", 1, 5)
        tx.run("UPDATE model_requests SET root_id = ?", ROOT)

    await store.write(plant)
    asked: list[str] = []

    class Counting(Tx):
        def rows(self, sql: str, *args: Any) -> list[tuple[Any, ...]]:
            asked.append(sql)
            return super().rows(sql, *args)

    def look(tx: Tx) -> tuple[Json, float]:
        row = sessions.get(tx, ROOT)
        assert row is not None
        counting = Counting(tx._db, tx._columns, None)
        started = time.perf_counter()
        return tree_view(counting, row, subtree=False, limit=200), time.perf_counter() - started

    shape, seconds = await store.read(look)
    assert len(shape["nodes"]) == 200
    assert shape["usage"]["requests"] == 199 * 20
    assert len(asked) < 20, "not one for each session"
    assert seconds < 0.5


async def test_limits_count_what_is_set_aside_and_begin_anew_with_a_run(store: Store) -> None:
    aside = Reservation(ROOT, ROOT, rows.PROJECT, 1, rows.AT, "opus", "claude", "anthropic", 300, 100, 400_000, 9, True)

    def spend(tx: Tx) -> None:
        limits = {"max_cost_usd": 10.0, "max_tokens_per_session": 1_000, "max_active_sessions": 1}
        sessions.update(tx, ROOT, limits=limits, status=SessionStatus.RUNNING)
        rows.spend(tx, ROOT, 1, 2_310_000)
        tx.run("UPDATE model_requests SET root_id = ?", ROOT)
        budgets.reserve(tx, aside)

    await store.write(spend)
    limits = await store.read(partial(limits_view, root_id=ROOT))
    assert limits == {
        "depth": {"used": 0},
        "agents": {"used": 1},
        "active": {"limit": 1, "used": 1, "remaining": 0},
        "tokens": {"limit": 1000, "used": 165, "reserved": 400, "remaining": 435},
        "cost_usd": {"limit": 10.0, "used": 2.31, "reserved": 0.4, "remaining": 7.29},
    }
    await store.write(lambda tx: budgets.count_anew(tx, ROOT, 500_000))
    limits = await store.read(partial(limits_view, root_id=ROOT))
    assert limits["cost_usd"] == {"limit": 0.5, "used": 0, "reserved": 0.4, "remaining": 0.1}
    assert limits["tokens"]["used"] == 0
    await store.write(lambda tx: sessions.update(tx, ROOT, limits={}))
    await store.write(lambda tx: budgets.count_anew(tx, ROOT, None))
    limits = await store.read(partial(limits_view, root_id=ROOT))
    assert limits["cost_usd"] == {"used": 0, "reserved": 0.4}, "no limit, nothing that remains"
    assert limits["tokens"] == {"used": 0, "reserved": 400}
