"""A tree at its limit: it pauses, goes on, is given up; and what it may start when nothing is left."""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette.core.model import EventType, Outcome, Reason, SessionStatus
from oubliette.errors import RequestError
from oubliette.session import budgets, pauses
from oubliette.session.requests import MessageArgs, RunBudget, SpawnArgs, TurnArgs
from oubliette.store import budgets as rows
from tests.session.money import Moment, Money, open_money
from tests.session.world import ADMIN, PROJECT

DOLLARS = {"max_cost_usd": 0.01}
"""Ten thousand tokens of the priced model."""


async def at_work(money: Money, *parents: str, text: str = "sleep") -> str:
    """A session whose agent works until it is stopped."""
    parent = parents[0] if parents else None
    one = await money.world.new(text, parent=parent)
    await money.world.until(one, "running")
    return one


async def refusal(awaitable: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await awaitable
    return caught.value


# The pause


async def test_a_request_that_does_not_fit_pauses_the_whole_tree_and_no_other(tmp_path: Path) -> None:
    async with open_money(tmp_path, limits=DOLLARS) as money, trio.open_nursery() as nursery:
        root = await at_work(money)
        child = await at_work(money, root)
        done = await money.world.new("say done", parent=root)
        await money.world.settle(done)
        other = await at_work(money)
        await money.ask(root, 9_000)
        nursery.start_soon(money.ask, child, 3_000)
        await money.world.until(child, "paused")
        await money.world.until(root, "paused")
        assert (await money.world.row(done)).status is SessionStatus.IDLE
        assert (await money.world.row(other)).status is SessionStatus.RUNNING
        told = {
            "name": "max_cost_usd",
            "limit": 0.01,
            "used": 0.009,
            "reserved": 0.0,
            "remaining": 0.001,
            "needed": 0.002048,
        }
        for one in (root, child):
            assert (await money.statuses(one))[-1] == {
                "from": "running",
                "to": "paused",
                "reason": "budget",
                "limit": told,
                "root_id": root,
            }
        await money.ask(other, 9_000)
        money.cut(child)


async def test_raising_the_limit_lets_the_tree_go_on_at_once(tmp_path: Path) -> None:
    async with open_money(tmp_path, limits=DOLLARS) as money:
        root = await at_work(money)
        await money.ask(root, 9_000)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(money.ask, root, 3_000)
                await money.world.until(root, "paused")
                result = await money.update(root, limits={"max_cost_usd": 0.02})
                assert result["status"] == "running", "already in the answer"
        assert await money.budget(root) == await money.budget("no such tree")
        [changed] = [event for event in await money.world.log(root) if event.type is EventType.SYSTEM]
        assert changed.body["code"] == "limits_changed"
        assert changed.body["data"]["limits"] == {"max_cost_usd": 0.02}
        assert changed.body["data"]["before"] == {"max_cost_usd": 0.01}
        assert changed.body["data"]["by"]["id"] == ADMIN.id


async def test_raising_it_too_little_leaves_it_paused(tmp_path: Path) -> None:
    async with open_money(tmp_path, limits=DOLLARS) as money, trio.open_nursery() as nursery:
        root = await at_work(money)
        await money.ask(root, 9_000)
        nursery.start_soon(money.ask, root, 3_000)
        await money.world.until(root, "paused")
        assert (await money.update(root, limits={"max_cost_usd": 0.0105}))["status"] == "paused"
        assert (await money.update(root, limits={"max_cost_usd": 0.0112}))["status"] == "running"
        await money.waiting(0)


async def test_requests_that_only_wait_for_others_pause_nobody(tmp_path: Path) -> None:
    async with open_money(tmp_path, limits=DOLLARS) as money, trio.open_nursery() as nursery:
        root = await at_work(money)
        for _ in range(20):
            nursery.start_soon(money.ask, root, 3_000, 100)
        await money.waiting(0)
        await money.ask(root, 3_000, 100)
        assert [one["to"] for one in await money.statuses(root)] == ["starting", "running"]


async def test_the_turns_clock_stands_still_while_the_tree_is_paused(tmp_path: Path) -> None:
    async with open_money(tmp_path, limits=DOLLARS) as money, trio.open_nursery() as nursery:
        one = str((await money.world.tree.spawn(ADMIN, _timed("sleep", 1.0)))["session_id"])
        await money.world.until(one, "running")
        await money.ask(one, 9_000)
        nursery.start_soon(money.ask, one, 3_000)
        await money.world.until(one, "paused")
        await trio.sleep(1.3)  # longer than the turn may take
        assert (await money.world.row(one)).status is SessionStatus.PAUSED
        await money.update(one, limits={"max_cost_usd": 1})
        [done] = await money.world.settle(one)
        assert done["outcome"] == "timed_out"


def _timed(text: str, seconds: float) -> SpawnArgs:
    return SpawnArgs(TurnArgs(text, model="priced", timeout_minutes=seconds / 60), PROJECT, new_session=True)


@pytest.mark.parametrize("how", ["interrupt", "end", "cancel"])
async def test_stopping_the_session_that_waits_frees_the_others(tmp_path: Path, how: str) -> None:
    async with open_money(tmp_path, limits=DOLLARS) as money, trio.open_nursery() as nursery:
        root = await at_work(money)
        child = await at_work(money, root)
        await money.ask(root, 9_000)
        nursery.start_soon(money.ask, child, 3_000)
        await money.world.until(root, "paused")
        if how == "interrupt":
            await money.world.tree.interrupt(ADMIN, child)
            await money.world.until(child, "idle")
        else:
            await money.world.tree.end(ADMIN, child, "completed" if how == "end" else "cancelled")
        await money.world.until(root, "running")
        await money.waiting(0)


@pytest.mark.parametrize("how", ["completed", "cancelled"])
async def test_a_paused_tree_can_be_ended_as_a_whole(tmp_path: Path, how: Any) -> None:
    async with open_money(tmp_path, limits=DOLLARS) as money, trio.open_nursery() as nursery:
        root = await at_work(money)
        child = await at_work(money, root)
        await money.ask(root, 9_000)
        nursery.start_soon(money.ask, child, 3_000)
        nursery.start_soon(money.ask, root, 3_000)
        await money.world.until(root, "paused")
        ended = await money.world.tree.end(ADMIN, root, how)
        assert ended["status"] == how
        assert sorted(ended["ended"]) == sorted([root, child])
        for one in (root, child):
            assert (await money.world.types(one)).count(EventType.COMPLETION) == 1
        await money.waiting(0)
        assert (await money.budget(root)).held is None


async def test_after_a_day_of_waiting_every_turn_of_the_tree_ends_for_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pauses, "LOOK_SECONDS", 0.02)
    moment = Moment()
    async with open_money(tmp_path, limits=DOLLARS, moment=moment) as money, trio.open_nursery() as nursery:
        root = await at_work(money)
        child = await at_work(money, root)
        other = await at_work(money)
        await money.ask(root, 9_000)
        nursery.start_soon(money.ask, child, 3_000)
        await money.world.until(child, "paused")
        moment.ahead = timedelta(hours=23, minutes=59)
        await trio.sleep(0.1)  # it looks at the clock
        assert (await money.world.row(root)).status is SessionStatus.PAUSED
        moment.ahead = timedelta(hours=24)
        for one in (root, child):
            await money.world.until(one, "idle")
            [done] = await money.world.settle(one)
            assert (done["status"], done["outcome"]) == ("idle", "budget")
            assert done["error"]["code"] == "budget_spent"
            completion = [event for event in await money.world.log(one) if event.type is EventType.COMPLETION]
            assert [event.body["outcome"] for event in completion] == ["budget"]
            assert (await money.world.row(one)).reason is Reason.BUDGET
        await money.waiting(0)
        assert (await money.world.row(other)).status is SessionStatus.RUNNING


async def test_a_tree_that_is_still_held_after_a_day_is_given_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that was queued behind an ended turn may begin before the others have ended."""
    monkeypatch.setattr(pauses, "LOOK_SECONDS", 0.01)
    stopped: list[Outcome] = []
    enough = trio.Event()

    class Working:
        driver: Any = None

        def stop_turn(self, outcome: Outcome, reason: Reason, *, kill: bool) -> None:
            stopped.append(outcome)
            if len(stopped) == 3:
                enough.set()

    async with open_money(tmp_path, limits=DOLLARS) as money, trio.open_nursery() as nursery:
        root = await at_work(money)
        working: Any = Working()
        working.driver = type("Driver", (), {"row": await money.world.row(root), "hold": lambda self, held: None})()
        held = pauses.Pauses(money.world.deps, {root: working})
        long_ago = money.moment.now() - timedelta(hours=25)
        why = {"name": "max_cost_usd", "limit": 0.01, "used": 0.01, "needed": 0.01}
        await money.world.store.write(lambda tx: rows.hold(tx, root, why, long_ago))
        await nursery.start(held.run)
        with trio.fail_after(5):
            await enough.wait()
        await money.world.store.write(lambda tx: held.release(tx, root, money.moment.now()))
        with trio.fail_after(5):
            while held._nursery is not None and held._nursery.child_tasks:
                await trio.sleep(0.01)  # it looks at the row
        assert set(stopped) == {Outcome.BUDGET}
        nursery.cancel_scope.cancel()


async def test_a_released_tree_is_not_given_up_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "LOOK_SECONDS", 0.02)
    moment = Moment()
    async with open_money(tmp_path, limits=DOLLARS, moment=moment) as money, trio.open_nursery() as nursery:
        root = await at_work(money)
        await money.ask(root, 9_000)
        nursery.start_soon(money.ask, root, 3_000)
        await money.world.until(root, "paused")
        await money.update(root, limits={"max_cost_usd": 1})
        await money.waiting(0)
        moment.ahead = timedelta(hours=24)
        await trio.sleep(0.1)  # it looks at the clock
        assert (await money.world.row(root)).status is SessionStatus.RUNNING


async def test_a_daemon_that_starts_again_finds_its_trees_paused(tmp_path: Path) -> None:
    async with trio.open_nursery() as agents:
        async with open_money(tmp_path, limits=DOLLARS) as money:
            agent = money.world.agent
            root = await at_work(money)
            child = await at_work(money, root)
            await money.ask(root, 9_000)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(money.ask, child, 3_000)
                await money.world.until(root, "paused")
                since = (await money.budget(root)).held_since
                # the daemon is gone: nobody releases anything
                money.world.tree.pauses.release = lambda *_: None  # type: ignore[method-assign]
                money.meter.tell(money.world.tree.pauses.hold, lambda *_: None)
                nursery.cancel_scope.cancel()
        agent._nursery = agents
        async with open_money(tmp_path, limits=DOLLARS, agent=agent) as money:
            for one in (root, child):
                assert (await money.world.row(one)).status is SessionStatus.PAUSED
                assert [told["to"] for told in await money.statuses(one)][-1] == "paused"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(money.ask, child, 3_000)  # as agents do whose request broke off
                await money.waiting(1)
                assert (await money.budget(root)).held_since == since, "the day goes on from where it was"
                await money.update(root, limits={"max_cost_usd": 1})
            for one in (root, child):
                assert (await money.world.until(one, "running")).reason is None
        agents.cancel_scope.cancel()


async def test_an_ask_waits_behind_the_pause_and_shows_again_after_it(tmp_path: Path) -> None:
    async with open_money(tmp_path, limits=DOLLARS) as money, trio.open_nursery() as nursery:
        root = await at_work(money)
        asking = await money.world.new("ask x", parent=root)
        await money.world.until(asking, "waiting")
        await money.ask(root, 9_000)
        nursery.start_soon(money.ask, root, 3_000)
        await money.world.until(asking, "paused")
        await money.update(root, limits={"max_cost_usd": 1})
        assert (await money.world.until(asking, "waiting")).reason is Reason.PERMISSION
        await money.ask(root, 987_000)
        nursery.start_soon(money.ask, root, 30_000)
        await money.world.until(asking, "paused")
        [pending] = (await money.world.tree.wait(ADMIN, [asking], False, 5))["sessions"][0]["pending"]
        await money.world.tree.answer(ADMIN, pending["request_id"], "once", None)
        row = await money.world.row(asking)
        assert (row.status, row.reason) in (
            (SessionStatus.PAUSED, Reason.BUDGET),
            (SessionStatus.IDLE, None),
        ), "an answer is no money"
        money.cut(root)


async def test_a_session_that_begins_in_a_paused_tree_is_paused_too(tmp_path: Path) -> None:
    async with open_money(tmp_path, limits=DOLLARS) as money, trio.open_nursery() as nursery:
        root = await at_work(money)
        child = await money.world.new("say one", parent=root)
        await money.world.settle(child)
        await money.ask(root, 9_000)
        nursery.start_soon(money.ask, root, 3_000)
        await money.world.until(root, "paused")
        await money.world.message(child, "sleep")
        await money.world.until(child, "paused")
        await money.update(root, limits={"max_cost_usd": 1})
        await money.world.until(child, "running")


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_in_whatever_order_the_limit_holds(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    async with open_money(tmp_path, limits=DOLLARS) as money:
        root = await at_work(money)
        workers = [root, *[await at_work(money, root) for _ in range(3)]]
        most = 10_000

        async def check() -> None:
            spent = await money.world.store.read(lambda tx: budgets.spent(tx, root))
            assert spent.used_microusd + spent.reserved_microusd <= most

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(60):
                    match dice.choice(["ask", "ask", "ask", "cut", "raise", "pass"]):
                        case "ask":
                            tokens = dice.randrange(1, 6_000)
                            nursery.start_soon(money.ask, dice.choice(workers), tokens, dice.randint(0, tokens))
                        case "cut":
                            money.cut(dice.choice(workers))
                        case "raise":
                            most += dice.randrange(1, 4_000)
                            await money.update(root, limits={"max_cost_usd": most / 1_000_000})
                        case "pass":
                            await trio.lowlevel.checkpoint()
                    await check()
                most = 10**9
                await money.update(root, limits={"max_cost_usd": most / 1_000_000})
        await check()
        spent = await money.world.store.read(lambda tx: budgets.spent(tx, root))
        assert (spent.reserved_microusd, money.queue.waiting()) == (0, 0)
        for one in workers:
            await money.world.until(one, "running")
        assert (await money.budget(root)).held is None


# When nothing is left


async def test_a_child_of_a_spent_or_paused_tree_is_refused_at_once(tmp_path: Path) -> None:
    async with open_money(tmp_path, limits=DOLLARS) as money, trio.open_nursery() as nursery:
        root = await at_work(money)
        await money.ask(root, 9_500)
        nursery.start_soon(money.ask, root, 3_000)
        await money.world.until(root, "paused")
        error = await refusal(money.world.new("say more", parent=root))
        assert error.code == "budget_spent"
        assert error.retryable
        money.cut(root)
        await money.world.until(root, "running")
        await money.ask(root, 500)
        error = await refusal(money.world.new("say more", parent=root))
        assert (error.code, error.limit and error.limit.name) == ("budget_spent", "max_cost_usd")
        assert "session update" in error.hint


async def test_a_message_to_a_spent_tree_is_refused_and_a_spawn_begins_a_new_one(tmp_path: Path) -> None:
    async with open_money(tmp_path, limits=DOLLARS) as money:
        one = await money.world.new("say hello")
        await money.world.settle(one)
        await money.ask(one, 10_000)
        assert (await refusal(money.world.message(one, "say more"))).code == "budget_spent"
        spawned = await money.world.spawn("say anew")
        assert spawned["created"]
        assert spawned["session_id"] != one
        await money.update(one, limits={"max_cost_usd": 1})
        await money.world.message(one, "say more")
        [done] = await money.world.settle(one)
        assert done["final_text"] == "more"


# Runs


async def test_a_run_counts_from_its_own_beginning_and_has_its_own_limit(tmp_path: Path) -> None:
    async with open_money(tmp_path, limits=DOLLARS) as money:
        one = await money.world.new("say hello")
        await money.world.settle(one)
        await money.ask(one, 10_000)
        for number in (1, 2, 3):
            run = TurnArgs("sleep", run_budget=RunBudget(0.004))
            await money.world.tree.message(ADMIN, MessageArgs(run, one))
            await money.world.until(one, "running")
            spent = await money.world.store.read(lambda tx: budgets.spent(tx, one))
            assert spent.used_microusd == 0
            await money.ask(one, 3_000)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(money.ask, one, 3_000)
                await money.world.until(one, "paused")
                if number == 3:
                    await money.update(one, limits={"max_cost_usd": 0.009})
                    await money.waiting(0)
                await money.world.tree.interrupt(ADMIN, one)
                await money.world.settle(one)
        row = await money.world.tree.wait(ADMIN, [one], False, 1)
        assert row["sessions"][0]["usage"]["cost_usd"] == 0.022, "what it cost in its life"
        await money.world.tree.message(ADMIN, MessageArgs(TurnArgs("say hi", run_budget=RunBudget()), one))
        await money.world.settle(one)
        assert await money.budget(one) != await money.budget("no such tree")
        left = await money.world.store.read(lambda tx: budgets.remaining(tx, one))
        assert [(account.limit, account.used) for account in left.values()] == [(9_000, 0)], "the tree's own limit"


async def test_the_limit_of_a_run_can_be_raised_to_that_of_the_tree(tmp_path: Path) -> None:
    async with open_money(tmp_path, limits=DOLLARS) as money:
        one = await money.world.new("say hello")
        await money.world.settle(one)
        run = TurnArgs("sleep", run_budget=RunBudget(0.004))
        await money.world.tree.message(ADMIN, MessageArgs(run, one))
        await money.world.until(one, "running")
        await money.ask(one, 3_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(money.ask, one, 3_000)
            await money.world.until(one, "paused")
            assert (await money.update(one, limits={"max_cost_usd": 0.01}))["status"] == "running"
            await money.waiting(0)
        [changed] = [event.body for event in await money.world.log(one) if event.type is EventType.SYSTEM]
        assert changed["data"]["before"] == {"max_cost_usd": 0.004}
        assert changed["data"]["limits"] == {"max_cost_usd": 0.01}


# Prices that nobody knows


async def test_a_budget_that_somebody_chose_needs_a_price(tmp_path: Path) -> None:
    async with open_money(tmp_path) as money:
        tree = money.world.tree

        def asked(**more: Any) -> SpawnArgs:
            return SpawnArgs(TurnArgs("say hi", model="mystery"), PROJECT, new_session=True, **more)

        error = await refusal(tree.spawn(ADMIN, asked(max_cost_usd=1.0)))
        assert (error.code, error.field) == ("invalid_argument", "max_cost_usd")
        assert "models.models.mystery" in error.hint
        one = str((await tree.spawn(ADMIN, asked()))["session_id"])
        await money.world.settle(one)
        assert (await refusal(money.update(one, limits={"max_cost_usd": 2}))).field == "max_cost_usd"
        priced = await money.world.new("say hi")
        await money.update(priced, limits={"max_cost_usd": 2})
        message = MessageArgs(TurnArgs("say hi", model="mystery"), priced)
        assert (await refusal(tree.message(ADMIN, message))).field == "max_cost_usd"
        assert (await refusal(money.update(priced, model="mystery"))).field == "max_cost_usd"
        assert (await money.world.turn(one, 1)).outcome is Outcome.COMPLETED
