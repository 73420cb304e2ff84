"""Who pays, what may be asked, and what is written down."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette.config import Config, load_config
from oubliette.core.model import (
    EventType,
    ModelUsage,
    NewEvent,
    PlaceState,
    SessionStatus,
    TurnStatus,
    WorkspaceRow,
)
from oubliette.core.pricing import Prices
from oubliette.errors import RequestError, StoreError
from oubliette.gateway.metering import EVENT_SECONDS, Estimate, Meter, Ticket, charged
from oubliette.gateway.models import Wire, all_models, resolve
from oubliette.gateway.usage import Reported
from oubliette.store import budgets, containers, events, projects, sessions, turns, workspaces
from tests.gateway.world import ALIASES, AT, KEY, MODELS, World, add_session, open_world

SMALL = Estimate(10, 10)
ONE = ModelUsage(requests=1, input_tokens=10, output_tokens=1, cost_microusd=75)


async def admit(world: World, asked: str = "opus", session: str | None = "ses_1", **more: Any) -> Ticket:
    return await world.meter.admit("c1", session, Wire.ANTHROPIC, asked, SMALL, **more)


async def refused(world: World, code: str, asked: str = "opus", session: str | None = "ses_1") -> RequestError:
    with pytest.raises(RequestError) as caught:
        await admit(world, asked, session)
    assert caught.value.code == code
    return caught.value


# Who pays


async def test_the_session_that_is_named_and_lives_there_pays(world: World) -> None:
    await world.store.write(partial(add_session, session_id="gogol_2", agent_session_id="ses_2", root_id="gogol_1"))
    ticket = await admit(world, session="ses_2")
    assert (ticket.session_id, ticket.root_id, ticket.project_id, ticket.turn) == ("gogol_2", "gogol_1", "p1", 1)


async def test_an_unknown_session_is_paid_by_its_parent_else_by_the_oldest(world: World) -> None:
    later = AT.replace(hour=20)
    await world.store.write(partial(add_session, session_id="gogol_2", agent_session_id="ses_2", created_at=later))
    assert (await admit(world, session="ses_sub", parent_agent_session_id="ses_2")).session_id == "gogol_2"
    for unknown in ("ses_nobody", None, ""):
        assert (await admit(world, session=unknown)).session_id == "gogol_1"


async def test_a_session_of_another_place_cannot_be_named(world: World) -> None:
    def elsewhere(tx: Any) -> None:
        project = projects.get(tx, "p1")
        assert project is not None
        projects.insert(tx, replace(project, project_id="p2", name="other"))
        workspaces.insert(tx, WorkspaceRow("w2", "p2", True, PlaceState.READY, AT))
        add_session(tx, "gogol_9", "ses_9", project_id="p2", workspace_id="w2")

    await world.store.write(elsewhere)
    assert (await admit(world, session="ses_9")).session_id == "gogol_1"


async def test_a_session_that_ends_or_has_ended_may_not_ask(world: World) -> None:
    await world.store.write(lambda tx: sessions.update(tx, "gogol_1", ending="completed"))
    assert "ended" in (await refused(world, "permission_denied")).message
    await refused(world, "permission_denied", session=None)
    await world.store.write(
        lambda tx: sessions.update(tx, "gogol_1", ending=None, status=SessionStatus.COMPLETED, ended_at=AT)
    )
    await refused(world, "permission_denied")
    await refused(world, "permission_denied", session=None)


async def test_a_container_that_is_gone_may_not_ask(world: World) -> None:
    await world.store.write(lambda tx: containers.delete(tx, "c1"))
    await refused(world, "permission_denied")
    assert await world.meter.capability("c1") is None


# What may be asked


async def test_a_projects_allowed_models_and_the_sessions_own_may_be_asked(tmp_path: Path) -> None:
    more = {"haiku": {"model": "claude-haiku-4-5", "provider": "anthropic"}}
    more["sonnet"] = {"model": "claude-sonnet-5", "provider": "anthropic"}
    async with open_world(tmp_path, settings={"allowed_models": ["haiku"]}, models=more) as world:
        assert (await admit(world, "haiku")).model.model == "claude-haiku-4-5"
        assert (await admit(world, "opus")).model.alias == "opus", "what the session was spawned with"
        await refused(world, "permission_denied", "sonnet")
        await refused(world, "permission_denied", "scripted")
        await world.store.write(lambda tx: turns.update(tx, "gogol_1", 1, overrides={"model": "sonnet"}))
        assert (await admit(world, "sonnet")).model.alias == "sonnet", "what the message asked for"


async def test_an_unknown_model_and_one_of_another_wire_are_not_found(world: World) -> None:
    await refused(world, "not_found", "claude-opus-4-6")
    await refused(world, "not_found", "")
    await refused(world, "not_found", "x@nobody")
    assert "openai" in (await refused(world, "not_found", "five")).hint


async def test_a_model_without_credential_says_what_to_configure(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        meter = Meter(world.store, _config(tmp_path, credentials={}))
        with pytest.raises(RequestError) as caught:
            await meter.admit("c1", "ses_1", Wire.ANTHROPIC, "opus", SMALL)
    assert caught.value.code == "not_ready"
    assert "credentials" in caught.value.hint


async def test_a_projects_own_credential_replaces_another_of_its_kind(tmp_path: Path) -> None:
    credentials = {
        "anthropic": {"provider": "anthropic", "api_key": KEY},
        "theirs": {"provider": "anthropic", "api_key": "sk-theirs-0123456789", "base_url": "https://proxy.example"},
        "gpt": {"provider": "openai", "api_key": "sk-gpt-0123456789"},
    }
    config = _config(tmp_path, credentials=credentials)
    assert resolve(config, "opus").api_key == KEY
    theirs = resolve(config, "opus", credential="theirs")
    assert (theirs.api_key, theirs.base_url, theirs.provider) == (
        "sk-theirs-0123456789",
        "https://proxy.example/v1",
        "theirs",
    )
    assert resolve(config, "opus", credential="gpt").api_key == KEY
    assert resolve(config, "opus", credential="gone").api_key == KEY
    (tmp_path / "world").mkdir()
    async with open_world(tmp_path / "world", settings={"credential_refs": {"provider": "theirs"}}) as world:
        ticket = await Meter(world.store, config).admit("c1", "ses_1", Wire.ANTHROPIC, "opus", SMALL)
    assert ticket.model.provider == "theirs"


def test_addresses_have_the_right_defaults(tmp_path: Path) -> None:
    credentials = {kind: {"provider": kind, "api_key": KEY} for kind in ("anthropic", "openai", "google")}
    models = {alias: {"model": MODELS[wire], "provider": wire.value} for wire, alias in ALIASES.items()}
    models["local"] |= {"baseUrl": "http://127.0.0.1:11434/v1/"}
    models["bare"] = {"model": "x", "provider": "openai-compatible", "baseUrl": "http://127.0.0.1:11434"}
    found = all_models(_config(tmp_path, credentials=credentials, models=models))
    assert {alias: model.base_url for alias, model in found.items() if not model.scripted} == {
        "opus": "https://api.anthropic.com/v1",
        "five": "https://api.openai.com/v1",
        "flash": "https://generativelanguage.googleapis.com/v1beta",
        "local": "http://127.0.0.1:11434/v1",
        "bare": "http://127.0.0.1:11434/v1",
    }
    assert [alias for alias, model in found.items() if model.scripted] == [
        "scripted",
        "scripted-anthropic",
        "scripted-openai",
        "scripted-google",
    ]
    assert found["scripted"].wire is Wire.CHAT
    assert found["scripted-google"].wire is Wire.GOOGLE
    assert KEY not in repr(found)


def test_an_alias_overrides_what_is_known_of_its_model(tmp_path: Path) -> None:
    entry: dict[str, Any] = {"model": "claude-opus-4-6", "provider": "anthropic"}
    models = {
        "plain": entry,
        "own": entry
        | {"maxOutputTokens": 500, "contextWindow": 9000, "images": False, "cost": {"input": 1, "output": 2}},
        "free": entry | {"cost": {"input": 0, "output": 0}},
        "cached": entry | {"cost": {"input": 1, "output": 2, "cache_read": 0.3, "cache_write": 0.4}},
        "unknown": entry | {"model": "someone-elses"},
    }
    found = all_models(_config(tmp_path, credentials={"anthropic": {"provider": "anthropic"}}, models=models))
    assert (found["plain"].max_output_tokens, found["plain"].output_cap) == (128_000, None)
    assert found["plain"].prices == Prices(5, 25, 0.5, 6.25)
    assert (found["own"].max_output_tokens, found["own"].output_cap) == (500, 500)
    assert (found["own"].context_tokens, found["own"].images) == (9000, False)
    assert found["own"].prices == Prices(1, 2, 0.5, 6.25)
    assert found["free"].prices == Prices(0, 0, 0, 0)
    assert found["cached"].prices == Prices(1, 2, 0.3, 0.4)
    assert found["unknown"].prices is None
    assert not found["unknown"].known


async def test_a_ticket_knows_the_most_that_its_request_can_cost(world: World) -> None:
    async def worst(estimate: Estimate) -> int:
        return (await world.meter.admit("c1", "ses_1", Wire.ANTHROPIC, "opus", estimate)).worst_case_microusd

    assert await worst(Estimate(1000, 100)) == 6250 + 2500
    assert await worst(Estimate(0, None)) == 128_000 * 25
    assert await worst(Estimate(0, 10**9)) == 128_000 * 25


# What it came to


async def test_without_the_providers_numbers_the_cost_is_an_estimate_and_says_so(world: World) -> None:
    ticket = await world.meter.admit("c1", "ses_1", Wire.ANTHROPIC, "opus", Estimate(900, 100))
    nothing = charged(ticket, Reported())
    assert (nothing.input_tokens, nothing.output_tokens, nothing.cost_complete) == (900, 0, False)
    assert nothing.cost_microusd == 4500
    half = charged(ticket, Reported(input_tokens=50, cache_read_tokens=800, characters=300))
    assert (half.input_tokens, half.output_tokens, half.cache_read_tokens) == (50, 100, 800)
    assert half.cost_microusd == 250 + 2500 + 400
    assert not half.cost_complete
    searched = charged(ticket, Reported(input_tokens=1, output_tokens=1, complete=True, unpriced=True))
    assert not searched.cost_complete
    assert charged(ticket, Reported(input_tokens=1, output_tokens=1, complete=True)).cost_complete


async def test_a_model_without_price_counts_its_tokens_all_the_same(tmp_path: Path) -> None:
    more = {"mystery": {"model": "mystery-7b", "provider": "openai-compatible"}}
    async with open_world(tmp_path, models=more) as world:
        await world.ask(Wire.CHAT, "@usage 10 20", alias="mystery")
        await world.gateway.settled("gogol_1")
        [row] = await world.rows()
    assert (row["input_tokens"], row["output_tokens"], row["cost_microusd"], row["cost_complete"]) == (10, 20, 0, 0)


# Usage events


def usage_events(world: World) -> list[dict[str, Any]]:
    return [event.body["usage"] for event in world.events if event.type is EventType.USAGE]


async def test_many_requests_at_once_make_few_events_and_lose_nothing(world: World) -> None:
    ticket = await admit(world)
    for _ in range(25):
        await world.meter.settle(ticket, ONE)
    assert [one["requests"] for one in usage_events(world)] == [1]
    await world.meter.flush("gogol_1")
    assert [one["requests"] for one in usage_events(world)] == [1, 24]
    await world.meter.flush("gogol_1")
    assert len(usage_events(world)) == 2
    assert sum(one["input_tokens"] for one in usage_events(world)) == 250
    assert sum(one["cost_usd"] for one in usage_events(world)) == pytest.approx(25 * 75e-6)
    assert len(await world.rows()) == 25


async def test_what_waits_is_written_within_a_second(world: World) -> None:
    ticket = await admit(world)
    began = trio.current_time()
    await world.meter.settle(ticket, ONE)
    await world.meter.settle(ticket, ONE)
    with trio.fail_after(EVENT_SECONDS + 2):
        while len(usage_events(world)) < 2:  # the store's publication is what is waited for
            await trio.sleep(0.01)
    assert trio.current_time() - began >= EVENT_SECONDS - 0.05


async def test_after_a_second_the_next_event_carries_what_waited(world: World) -> None:
    ticket = await admit(world)
    recent = world.meter._recent
    await world.meter.settle(ticket, ONE)
    recent["gogol_1"].since += 1000  # as long as the service sleeps nobody else writes it
    await world.meter.settle(ticket, ONE)
    recent["gogol_1"].since -= 2000
    await world.meter.settle(ticket, ONE)
    assert [one["requests"] for one in usage_events(world)] == [1, 2]


async def test_sessions_do_not_wait_for_each_other(world: World) -> None:
    await world.store.write(partial(add_session, session_id="gogol_2", agent_session_id="ses_2"))
    await world.meter.settle(await admit(world), ONE)
    await world.meter.settle(await admit(world, session="ses_2"), ONE)
    assert len(usage_events(world)) == 2


async def test_nothing_of_a_turn_comes_after_its_completion(world: World) -> None:
    ticket = await admit(world)
    await world.meter.settle(ticket, ONE)
    await world.meter.settle(ticket, ONE)

    def complete(tx: Any) -> None:
        turns.update(tx, "gogol_1", 1, status=TurnStatus.DONE)
        events.append(tx, "gogol_1", NewEvent(EventType.COMPLETION, turn=1))

    await world.store.write(complete)
    await world.meter.flush("gogol_1")
    assert [(event.type, event.turn) for event in world.events] == [
        (EventType.USAGE, 1),
        (EventType.COMPLETION, 1),
        (EventType.USAGE, None),
    ]
    assert [row["turn"] for row in await world.rows()] == [1, 1]


async def test_a_failed_request_has_a_row_and_no_event(world: World) -> None:
    await world.meter.settle(await admit(world), ModelUsage(requests=1), "HTTP 500")
    assert not usage_events(world)
    assert [row["error"] for row in await world.rows()] == ["HTTP 500"]


async def test_a_deleted_session_is_billed_without_an_event(world: World) -> None:
    ticket = await admit(world)
    await world.store.write(lambda tx: sessions.delete(tx, "gogol_1"))
    await world.meter.settle(ticket, ONE)
    assert len(await world.rows()) == 1


async def test_an_event_that_could_not_be_written_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = await admit(world)

    async def broken(unit: object) -> None:
        raise StoreError("full")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "write", broken)
        with pytest.raises(StoreError):
            await world.meter.settle(ticket, ONE)
        with pytest.raises(StoreError):
            await world.meter.flush("gogol_1")
    await world.meter.flush("gogol_1")
    assert [one["requests"] for one in usage_events(world)] == [1]


async def test_what_was_set_aside_does_not_stay_so_when_its_settlement_cannot_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(unit: object) -> None:
        raise StoreError("full")

    async def reserved() -> Ticket:
        ticket = await world.meter.reserve(await admit(world))
        assert isinstance(ticket, Ticket)
        return ticket

    sent, given_back = await reserved(), await reserved()
    with monkeypatch.context() as patch:
        patch.setattr(world.store, "write", broken)
        with pytest.raises(StoreError):
            await world.meter.settle(sent, ONE)
        await world.meter.give_back(given_back)
    assert await world.rows() == []
    with trio.fail_after(EVENT_SECONDS + 5):
        while (await world.store.read(partial(budgets.tree_reserved, root_id="gogol_1")))[0]:
            await trio.sleep(0.02)  # the service tries again
    assert [row["cost_microusd"] for row in await world.rows()] == [ONE.cost_microusd]


async def test_a_meter_that_is_started_again_leaves_alone_what_is_at_work(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        meter = Meter(world.store, _config(tmp_path))
        async with trio.open_nursery() as nursery:
            await nursery.start(meter.run)
            ticket = await meter.reserve(await admit(world))
            nursery.cancel_scope.cancel()
        assert isinstance(ticket, Ticket)
        set_aside = await world.store.read(partial(budgets.tree_reserved, root_id="gogol_1"))
        async with trio.open_nursery() as nursery:
            await nursery.start(meter.run)
            assert await world.store.read(partial(budgets.tree_reserved, root_id="gogol_1")) == set_aside != (0, 0)
            await meter.settle(ticket, ONE)
            nursery.cancel_scope.cancel()
        assert [row["cost_microusd"] for row in await world.rows()] == [ONE.cost_microusd]


async def test_what_waits_when_the_service_ends_is_written(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        meter = Meter(world.store, _config(tmp_path))
        async with trio.open_nursery() as nursery:
            await nursery.start(meter.run)
            ticket = await admit(world)
            await meter.settle(ticket, ONE)
            await meter.settle(ticket, ONE)
            nursery.cancel_scope.cancel()
        assert len(usage_events(world)) == 2


def _config(
    directory: Path, *, credentials: dict[str, Any] | None = None, models: dict[str, Any] | None = None
) -> Config:
    directory.mkdir(exist_ok=True)
    file = directory / "own.jsonc"
    chosen = models or {"opus": {"model": "claude-opus-4-6", "provider": "anthropic"}}
    if credentials is None:
        credentials = {"anthropic": {"provider": "anthropic", "api_key": KEY}}
    file.write_text(
        json.dumps({"credentials": {"providers": {"credentials": credentials}}, "models": {"models": chosen}})
    )
    config, _ = load_config(file, {})
    return config
