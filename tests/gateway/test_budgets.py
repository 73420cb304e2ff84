"""Requests at the edge of a budget: set aside exactly, held with their connection, let through in order."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import trio
import trio.lowlevel

from oubliette.core.budget import Account, Held, LimitName
from oubliette.core.model import SessionStatus
from oubliette.errors import RequestError, StoreError
from oubliette.gateway import answer, lines, places
from oubliette.gateway.metering import Estimate, Meter, Ticket
from oubliette.gateway.models import Wire
from oubliette.gateway.upstream import UpstreamCut
from oubliette.store import budgets, sessions
from oubliette.store.budgets import TreeBudget
from oubliette.store.database import Tx
from tests.gateway.test_limits import rest, streaming, until
from tests.gateway.world import WIRES, World, add_session, open_world, request_body
from tests.sweep import Check, Cut, Operation, cancel_sweep

OUTPUT = 1_000
PRICE = 4
"""USD for a million tokens that the model of the chat wire writes."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_REQUESTS", 64)
    monkeypatch.setattr(answer, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(answer, "SIGN_SECONDS", 0.05)


def limit(world: World, **limits: Any) -> Any:
    """A unit that gives the tree of gogol_1 these limits."""
    return world.store.write(lambda tx: sessions.update(tx, "gogol_1", limits=limits))


async def raised(world: World, **limits: Any) -> None:
    await limit(world, **limits)
    world.gateway.budget_changed(root_id="gogol_1")


async def budget_of(world: World, root_id: str = "gogol_1") -> TreeBudget:
    return await world.store.read(partial(budgets.get, root_id=root_id))


async def settled_rows(world: World) -> list[dict[str, Any]]:
    """The client sees the end of an answer before its row is written."""
    for session in ("gogol_1", "gogol_2"):
        await world.gateway.settled(session)
    return await world.rows()


async def spent(world: World) -> int:
    return sum(row["cost_microusd"] for row in await settled_rows(world))


def body(prompt: str, *, output: int = OUTPUT, stream: bool = True) -> dict[str, Any]:
    return {**request_body(Wire.CHAT, prompt, stream=stream), "max_tokens": output}


async def ask(world: World, prompt: str = "@usage 10 900\n@say done", **more: Any) -> httpx.Response:
    return await world.ask(Wire.CHAT, body=body(prompt), **more)


async def waiting(world: World, number: int) -> None:
    await until(lambda: world.gateway.requests_waiting() == number)


async def test_twenty_at_once_at_the_edge_never_spend_more_than_there_is(world: World) -> None:
    await limit(world, max_cost_usd=0.022)
    answers: list[httpx.Response] = []

    async def one() -> None:
        answers.append(await ask(world, "@usage 10 900\n@delay 0.05\n@say done"))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one)
            await until(lambda: len(answers) + world.gateway.requests_waiting() == 20 and bool(answers))
            await until(lambda: len(answers) >= 5)
            await until(lambda: world.gateway.requests_at_work() == 0)
            assert await spent(world) <= 22_000
            assert (await budget_of(world)).held is not None
            done = len(answers)
            assert done == len(await settled_rows(world)) == 5, "each came to 3,610 of 4,100 at worst"
            await raised(world, max_cost_usd=1)
    assert [one.status_code for one in answers] == [200] * 20
    assert all("done" in one.text for one in answers)
    assert await spent(world) == 20 * 3_610
    assert await budget_of(world) == TreeBudget()
    assert await world.store.read(partial(budgets.tree_reserved, root_id="gogol_1")) == (0, 0)


async def test_what_is_set_aside_and_spent_stays_below_the_limit_at_every_moment(world: World) -> None:
    await limit(world, max_cost_usd=0.03)
    over = []

    async def watch() -> None:
        while True:
            used, reserved = await world.store.read(_used_and_reserved)
            over.extend([used + reserved] if used + reserved > 30_000 else [])
            await trio.lowlevel.checkpoint()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as askers:
                for number in range(20):
                    askers.start_soon(ask, world, f"@usage 10 {number * 50}\n@delay 0.01\n@say done")
                await until(lambda: world.gateway.requests_waiting() > 0)
                await until(lambda: world.gateway.requests_at_work() == 0)
                nursery.cancel_scope.cancel()
                world.gateway.cancel_session("gogol_1")
    assert not over


def _used_and_reserved(tx: Tx) -> tuple[int, int]:
    used = tx.rows("SELECT coalesce(sum(cost_microusd), 0) FROM model_requests")[0][0]
    return used, budgets.tree_reserved(tx, "gogol_1")[0]


async def test_requests_that_fit_but_for_others_wait_without_holding_the_tree(world: World) -> None:
    await limit(world, max_cost_usd=0.006)
    gate = trio.Event()
    world.provider.gates.append(gate)
    told: list[str] = []
    world.meter.tell(lambda *_: told.append("held"), lambda *_: None)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, world, "@usage 10 100\n@say first")
            await until(lambda: world.provider.at_work == 1)
            nursery.start_soon(ask, world, "@usage 10 100\n@say second")
            await waiting(world, 1)
            gate.set()
    assert len(await settled_rows(world)) == 2
    assert not told


async def test_held_requests_go_on_in_the_order_they_came(world: World) -> None:
    await limit(world, max_cost_usd=0.0001)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(ask, world, f"@usage 10 900\n@say number {number}")
                await waiting(world, number + 1)
            for number in range(6):
                await raised(world, max_cost_usd=0.0045 + number * 0.00361)
                await until(lambda n=number: len(world.provider.asked) == n + 1)
                await waiting(world, 5 - number)
    prompts = [asked.body["messages"][0]["content"][0]["text"] for asked in world.provider.asked]
    assert [prompt.split()[-1] for prompt in prompts] == list("012345")


async def test_a_later_small_request_does_not_overtake_one_that_is_held(world: World) -> None:
    await limit(world, max_cost_usd=0.003)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, world, "@usage 10 900\n@say large")
            await waiting(world, 1)
            nursery.start_soon(partial(world.ask, Wire.CHAT, body=body("@usage 1 1\n@say small", output=10)))
            await waiting(world, 2)
            await raised(world, max_cost_usd=1)
    prompts = [asked.body["messages"][0]["content"][0]["text"] for asked in world.provider.asked]
    assert "large" in prompts[0]


@pytest.mark.parametrize("wire", WIRES)
async def test_a_held_stream_begins_says_that_it_lives_and_goes_on(tmp_path: Path, wire: Wire) -> None:
    async with priced_world(tmp_path) as world:
        await limit(world, max_cost_usd=0.00001)
        with trio.fail_after(10):
            async with streaming(world, wire, "@say hello") as held:
                text = b""
                while text.count(b": waiting for the budget\n\n") < 3:
                    text += await held.receive()
                assert b"data:" not in text
                assert held.status == 200
                assert held.headers["content-type"].startswith("text/event-stream")
                await raised(world, max_cost_usd=10)
                text = await rest(held)
        assert b"hello" in text
        [row] = await settled_rows(world)
        assert row["error"] is None


async def test_a_held_answer_that_is_no_stream_is_still_one_json_object(world: World) -> None:
    await limit(world, max_cost_usd=0.00001)
    answers: list[httpx.Response] = []

    async def one() -> None:
        answers.append(await world.ask(Wire.CHAT, body=body("@say hello", stream=False)))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await waiting(world, 1)
            await trio.sleep(0.2)  # long enough for the answer to begin
            await raised(world, max_cost_usd=10)
    assert answers[0].text.startswith(" ")
    assert answers[0].json()["choices"][0]["message"]["content"] == "hello"


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("begun", [False, True])
async def test_ending_the_turn_ends_its_held_requests_with_a_sentence(
    tmp_path: Path, wire: Wire, begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not begun:
        monkeypatch.setattr(answer, "PATIENCE_SECONDS", 60)
    async with priced_world(tmp_path) as world:
        await limit(world, max_cost_usd=0.00001)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                said: list[str] = []

                async def one() -> None:
                    said.append((await world.ask(wire, "@say hello")).text)

                nursery.start_soon(one)
                await waiting(world, 1)
                if begun:
                    await trio.sleep(0.15)  # until its answer has begun
                world.gateway.cancel_session("gogol_1")
        assert "The request was ended: its turn was ended." in said[0]
        assert ("waiting for the budget" in said[0]) == begun
        await until(lambda: not world.gateway.requests_waiting())
        assert not await settled_rows(world), "no model was asked"
        with trio.fail_after(5):
            while (await budget_of(world)).held is not None:
                await trio.sleep(0.005)  # a service of the gateway's writes it


async def test_a_provider_that_refuses_after_a_hold_is_quoted_inside_the_stream(world: World) -> None:
    await limit(world, max_cost_usd=0.00001)
    world.provider.fail_next(Wire.CHAT, 400, "no such parameter")
    with trio.fail_after(10):
        async with streaming(world, Wire.CHAT, "@say hello") as held:
            await held.receive()
            await raised(world, max_cost_usd=10)
            text = await rest(held)
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith(b"data: ")]
    assert events == [
        {"error": {"message": "no such parameter", "type": "invalid_request_error", "param": None, "code": None}}
    ]


async def test_a_provider_that_is_overloaded_after_a_hold_breaks_the_stream_off_so_that_agents_ask_again(
    world: World,
) -> None:
    await limit(world, max_cost_usd=0.00001)
    world.provider.fail_next(Wire.CHAT, 529, "overloaded")
    with trio.fail_after(10):
        async with streaming(world, Wire.CHAT, "@say hello") as held:
            await held.receive()
            await raised(world, max_cost_usd=10)
            with pytest.raises(UpstreamCut):
                await rest(held)
    [row] = await settled_rows(world)
    assert row["error"] == "HTTP 529"


async def test_a_client_that_leaves_while_it_is_held_makes_room(world: World) -> None:
    await limit(world, max_cost_usd=0.00001)
    with trio.fail_after(10):
        async with streaming(world, Wire.CHAT, "@say hello") as held:
            await held.receive()
            assert world.gateway.requests_waiting() == 1
        await until(lambda: not world.gateway.requests_waiting())
        while (await budget_of(world)).held is not None:
            await trio.sleep(0.005)


async def test_held_requests_take_no_place_from_others_of_their_container(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "MAX_REQUESTS", 4)
    await world.store.write(partial(add_session, session_id="gogol_2", agent_session_id="ses_2"))
    await limit(world, max_cost_usd=0.00001)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(ask, world)
                await waiting(world, number + 1)
            assert (await ask(world, session="ses_2")).status_code == 200, "another tree goes on"
            await until(lambda: world.gateway.requests_at_work("c1") == 0)
            await raised(world, max_cost_usd=1)
    assert len(await settled_rows(world)) == 13


async def test_a_tree_that_could_not_be_freed_when_its_line_emptied_is_freed_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lines, "LOOK_AGAIN_SECONDS", 0.01)
    freed: list[str] = []
    ticket: Any = SimpleNamespace(root_id="r", project_id="p")

    async def reserve(_ticket: Ticket) -> Held:
        await trio.lowlevel.checkpoint()
        return Held(Account(LimitName.TREE_COST, 1, 1), 1)

    async def release(root_id: str) -> None:
        freed.append(root_id)
        if len(freed) == 1:
            raise StoreError("write to the store: the disk is full")

    queue = lines.Lines(reserve, release)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(queue.run)
            with trio.move_on_after(0.02):
                await queue.through(ticket)
            await until(lambda: len(freed) == 2)
            nursery.cancel_scope.cancel()
    assert freed == ["r", "r"]


async def test_what_waits_is_bounded_in_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_PARKED_BYTES", 2_000)
    await limit(world, max_cost_usd=0.00001)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(ask, world, "@say hello " + "x" * 1_500))
            await waiting(world, 1)
            refused = await ask(world, "@say hello " + "x" * 1_500)
            assert refused.status_code == 429
            world.gateway.cancel_session("gogol_1")


async def test_a_request_larger_than_its_budget_is_asked_for_less(world: World) -> None:
    await limit(world, max_cost_usd=0.02)
    response = await world.ask(Wire.CHAT, body=body("@say hello", output=16_000))
    assert response.status_code == 200
    [asked] = world.provider.asked
    assert 4_000 < asked.body["max_tokens"] < 5_000
    await limit(world, max_cost_usd=None)
    assert (await world.ask(Wire.CHAT, body=body("@say hello", output=16_000))).status_code == 200
    assert world.provider.asked[1].body["max_tokens"] == 16_000


async def test_tokens_hold_as_money_does_and_a_model_without_a_price_is_held_by_tokens_alone(tmp_path: Path) -> None:
    models = {"cheap": {"model": "nobody-knows-it", "provider": "openai-compatible"}}
    async with open_world(tmp_path, models=models) as world:
        asking = {**body("@usage 10 900\n@say done"), "model": "cheap"}
        await limit(world, max_cost_usd=0.000001, max_tokens_per_session=2_000)
        assert (await world.ask(Wire.CHAT, body=asking)).status_code == 200
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(world.ask, Wire.CHAT, body=asking))
                nursery.start_soon(partial(world.ask, Wire.CHAT, body=asking))
                await until(lambda: world.gateway.requests_at_work() == 0 and world.gateway.requests_waiting() == 1)
                held = (await budget_of(world)).held
                assert held is not None
                assert (held["name"], held["limit"], held["used"]) == ("max_tokens_per_session", 2_000, 1_820)
                await raised(world, max_tokens_per_session=10_000)
        rows = await settled_rows(world)
        assert [row["cost_complete"] for row in rows] == [0, 0, 0]


async def test_a_free_model_goes_on_when_all_money_is_spent(world: World) -> None:
    await limit(world, max_cost_usd=0.005)
    with trio.fail_after(10):
        assert (await ask(world, "@usage 10 1300\n@say more than was asked for")).status_code == 200
        assert await spent(world) > 5_000
        assert (await world.ask(Wire.CHAT, "@say free", alias="scripted")).status_code == 200


# Days


class Calendar:
    """A wall clock that a test moves."""

    def __init__(self) -> None:
        self.at = datetime(2026, 11, 22, 23, 50, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at


@asynccontextmanager
async def priced_world(path: Path, **more: Any) -> AsyncIterator[World]:
    """A world in which every alias has a price."""
    cost = {"cost": {"input": 1, "output": PRICE}}
    async with open_world(path, models=dict.fromkeys(("opus", "five", "flash", "local"), cost), **more) as world:
        yield world


async def test_a_spent_day_holds_every_tree_of_the_project_until_midnight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "LOOK_AGAIN_SECONDS", 0.05)
    calendar = Calendar()
    settings = {"limits": {"max_cost_usd_per_day": 0.0085}}
    async with priced_world(tmp_path, settings=settings, now=calendar.now) as world:
        await world.store.write(partial(add_session, session_id="gogol_2", agent_session_id="ses_2"))
        with trio.fail_after(20):
            for session in ("ses_1", "ses_2"):
                assert (await ask(world, session=session)).status_code == 200
            async with trio.open_nursery() as nursery:
                for number, session in enumerate(("ses_1", "ses_2")):
                    nursery.start_soon(partial(ask, world, session=session))
                    await waiting(world, number + 1)
                for root in ("gogol_1", "gogol_2"):
                    held = (await budget_of(world, root)).held
                    assert held is not None
                    assert held["name"] == "max_cost_usd_per_day"
                calendar.at += timedelta(minutes=9, seconds=59)
                await trio.sleep(0.2)  # they look again, and it is still today
                assert world.gateway.requests_waiting() == 2
                calendar.at += timedelta(seconds=1)
        assert len(await settled_rows(world)) == 4


# A daemon that ends


async def test_what_was_set_aside_when_a_daemon_died_is_settled_by_the_next(tmp_path: Path) -> None:
    async with priced_world(tmp_path) as world:
        await limit(world, max_cost_usd=1)
        ticket = await world.meter.admit("c1", "ses_1", Wire.ANTHROPIC, "opus", Estimate(5_000, 1_000))
        reserved = await world.meter.reserve(ticket)
        assert isinstance(reserved, Ticket)
        assert reserved.worst_case_microusd == 35_250
        async with trio.open_nursery() as nursery:
            await nursery.start(Meter(world.store, world.config).run)
            nursery.cancel_scope.cancel()
        [row] = await settled_rows(world)
        assert (row["cost_microusd"], row["input_tokens"], row["cost_complete"]) == (31_250, 5_000, 0)
        assert "daemon" in row["error"]
        assert await world.store.read(partial(budgets.tree_reserved, root_id="gogol_1")) == (0, 0)


async def test_a_session_that_has_ended_meanwhile_is_refused_where_it_waits(world: World) -> None:
    await limit(world, max_cost_usd=0.00001)
    ticket = await world.meter.admit("c1", "ses_1", Wire.CHAT, "local", Estimate(5_000, 1_000))
    assert isinstance(await world.meter.reserve(ticket), Held)
    await world.store.write(
        lambda tx: sessions.update(tx, "gogol_1", status=SessionStatus.COMPLETED, ended_at=datetime.now(UTC))
    )
    with pytest.raises(RequestError, match="ended"):
        await world.meter.reserve(ticket)


async def test_cancelled_at_any_checkpoint_a_held_request_leaves_nothing_set_aside(world: World) -> None:
    async with trio.open_nursery() as nursery:
        queue = lines.Lines(world.meter.reserve, world.meter.release_tree)
        await nursery.start(queue.run)

        @asynccontextmanager
        async def subject() -> AsyncIterator[tuple[Operation, Check]]:
            await limit(world, max_cost_usd=0.00001)
            ticket = await world.meter.admit("c1", "ses_1", Wire.CHAT, "local", Estimate(1_000, 1_000))

            async def operation() -> None:
                async with trio.open_nursery() as inner:
                    inner.start_soon(one)
                    while not queue.waiting():
                        await trio.lowlevel.checkpoint()
                    await limit(world, max_cost_usd=1)
                    queue.changed(root_id="gogol_1")

            async def one() -> None:
                await world.meter.give_back(await queue.through(ticket))

            async def check(cut: Cut) -> None:
                assert not queue.waiting()
                while (await budget_of(world)).held is not None:
                    await trio.sleep(0.001)  # the line's own service writes it
                leaked = await world.store.read(lambda tx: tx.all("SELECT * FROM reservations"))
                assert not leaked or cut.cancelled
                await world.store.write(lambda tx: tx.run("DELETE FROM reservations"))

            yield operation, check

        assert await cancel_sweep(subject) > 10
        nursery.cancel_scope.cancel()
