"""Where a tree's count begins, what holds it, and what is set aside for its requests at work."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from oubliette.core.model import ModelUsage
from oubliette.store import budgets, model_requests, sessions
from oubliette.store.budgets import Reservation, TreeBudget
from oubliette.store.database import Store, Tx
from tests.store.rows import AT, PROJECT, place_with_session

ROOT = "gogol_1"


def reservation(**changes: object) -> Reservation:
    given = {
        "session_id": ROOT,
        "root_id": ROOT,
        "project_id": PROJECT,
        "turn": 1,
        "at": AT,
        "alias": "opus",
        "model": "claude-opus-4-6",
        "provider": "anthropic",
        "input_tokens": 100,
        "output_tokens": 50,
        "cost_microusd": 1_000,
        "read_microusd": 600,
        "priced": True,
    }
    return Reservation(**{**given, **changes})  # type: ignore[arg-type]


def spend(tx: Tx, microusd: int) -> None:
    usage = ModelUsage(requests=1, input_tokens=7, output_tokens=1, cache_read_tokens=2, cost_microusd=microusd)
    model_requests.insert(
        tx,
        session_id=ROOT,
        root_id=ROOT,
        project_id=PROJECT,
        turn=1,
        ts=AT,
        alias="a",
        model="m",
        provider="p",
        usage=usage,
    )


async def test_a_tree_counts_from_its_start_until_it_counts_anew(store: Store) -> None:
    def unit(tx: Tx) -> None:
        place_with_session(tx)
        assert budgets.get(tx, ROOT) == TreeBudget()
        spend(tx, 40)
        spend(tx, 2)
        assert model_requests.tree_spent(tx, ROOT, 0) == (42, 20)
        budgets.count_anew(tx, ROOT, 500)
        now = budgets.get(tx, ROOT)
        assert (now.run_limit_microusd, model_requests.tree_spent(tx, ROOT, now.counts_from)) == (500, (0, 0))
        spend(tx, 5)
        assert model_requests.tree_spent(tx, ROOT, now.counts_from) == (5, 10)
        assert model_requests.tree_usage(tx, ROOT).cost_microusd == 47
        assert model_requests.project_spent(tx, PROJECT, AT) == 47
        assert model_requests.project_spent(tx, PROJECT, AT + timedelta(seconds=1)) == 0
        budgets.set_run_limit(tx, ROOT, 700)
        budgets.count_anew(tx, ROOT, None)
        assert budgets.get(tx, ROOT).run_limit_microusd is None

    await store.write(unit)


async def test_a_hold_keeps_its_beginning_and_ends_once(store: Store) -> None:
    def unit(tx: Tx) -> None:
        place_with_session(tx)
        budgets.hold(tx, ROOT, {"name": "max_cost_usd", "used": 1}, AT)
        budgets.hold(tx, ROOT, {"name": "max_cost_usd", "used": 2}, AT + timedelta(hours=1))
        held = budgets.get(tx, ROOT)
        assert (held.held, held.held_since) == ({"name": "max_cost_usd", "used": 2}, AT)
        assert budgets.held_trees(tx) == [(ROOT, AT)]
        assert budgets.release(tx, ROOT)
        assert not budgets.release(tx, ROOT)
        assert budgets.held_trees(tx) == []
        budgets.hold(tx, ROOT, {}, AT + timedelta(hours=2))
        assert budgets.get(tx, ROOT).held_since == AT + timedelta(hours=2)
        sessions.delete(tx, ROOT)
        assert budgets.get(tx, ROOT) == TreeBudget()

    await store.write(unit)


async def test_what_is_set_aside_is_summed_for_tree_and_project_until_it_is_settled(store: Store) -> None:
    def unit(tx: Tx) -> None:
        one = budgets.reserve(tx, reservation())
        budgets.reserve(tx, reservation(cost_microusd=5, output_tokens=0))
        budgets.reserve(tx, reservation(root_id="gogol_other", cost_microusd=70))
        assert budgets.tree_reserved(tx, ROOT) == (1_005, 250)
        assert budgets.project_reserved(tx, PROJECT) == 1_075
        assert budgets.unreserve(tx, one)
        assert not budgets.unreserve(tx, one)
        assert budgets.tree_reserved(tx, ROOT) == (5, 100)

    await store.write(unit)


async def test_what_a_dead_daemon_left_costs_what_was_read(store: Store) -> None:
    def leave(tx: Tx) -> None:
        budgets.reserve(tx, reservation())
        budgets.reserve(tx, reservation(priced=False, read_microusd=0))

    await store.write(leave)
    assert await store.write(partial(budgets.settle_left_over, at=AT)) == 2
    assert await store.write(partial(budgets.settle_left_over, at=AT)) == 0
    usage = await store.read(partial(model_requests.tree_usage, root_id=ROOT))
    assert (usage.requests, usage.input_tokens, usage.output_tokens, usage.cost_microusd) == (2, 200, 0, 600)
    assert not usage.cost_complete
