"""What a session may give and reach: at most what it has, and only what is below it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette.agent.permissions import is_covered
from oubliette.core.model import Autonomy, Outcome, SessionStatus
from oubliette.core.principals import Principal, Scope
from oubliette.errors import RequestError
from oubliette.session.requests import MessageArgs, SpawnArgs, TurnArgs
from oubliette.store import requests, sessions, turns
from tests.api.agent_world import (
    FOREIGN_WORKSPACE,
    Agents,
    open_agents,
    settings,
)
from tests.api.world import OTHER_PROJECT
from tests.session.attempts import ATTEMPTS, HAS
from tests.session.world import ADMIN, PROJECT, World, open_world


async def test_no_attempt_to_get_more_succeeds_and_each_is_told_why(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        await settings(agents, allowed_models=["scripted"])
        parent, stamp = await agents.session(**HAS)
        stranger, _ = await agents.session()
        foreign, _ = await agents.session(project_id=OTHER_PROJECT, workspace_id=FOREIGN_WORKSPACE)
        spawned = await wire.result(stamp, action="spawn", message="sleep")
        sibling = await wire.result(stamp, action="spawn", message="sleep")
        child, child_stamp = await agents.at_work(spawned["session_id"])
        asking = await wire.result(stamp, action="spawn", message="ask")
        asker = await agents.doors.world.until(asking["session_id"], "waiting")
        [ask] = await agents.doors.world.store.read(partial(requests.pending, session_id=asker.session_id))
        names = {
            "{parent}": parent,
            "{child}": child,
            "{sibling}": sibling["session_id"],
            "{stranger}": stranger,
            "{foreign}": foreign,
            "{ask}": ask.request_id,
        }
        await agents.at_work(sibling["session_id"])
        before = await _state(agents)
        wrong = []
        for attempt in ATTEMPTS:
            given = {name: _filled(value, names) for name, value in attempt.arguments.items()}
            by = child_stamp if attempt.by_child else asker.agent_session_id if attempt.by_asker else stamp
            failed, text = await wire.call(attempt.tool, by, **given)
            if not (failed and text.startswith(f"{attempt.code}: ") and attempt.says in text):
                wrong.append((attempt.what, text))
        assert not wrong
        assert len(ATTEMPTS) >= 80
        assert await _state(agents) == before, "a refused attempt leaves nothing behind"
        texts = {
            (await wire.call("session", stamp, action="get", session_id=one))[1]
            for one in (stranger, foreign, "gogol_nope")
        }
        assert len(texts) == 1, "foreign and unknown look alike"
        listed = await wire.result(stamp, action="list")
        below = {child, sibling["session_id"], asker.session_id}
        assert {one["session_id"] for one in listed["sessions"]} == {parent, *below}


def _filled(value: Any, names: Mapping[str, str]) -> Any:
    return [_filled(one, names) for one in value] if isinstance(value, list) else names.get(str(value), value)


async def _state(agents: Agents) -> list[tuple[str, str, int]]:
    rows = await agents.doors.world.store.read(sessions.open_all)
    return [(row.session_id, str(row.status), row.turn) for row in rows]


# --- what is passed on


def session_principal(session_id: str) -> Principal:
    return Principal("session", session_id, session_id, Scope("session", project_id=PROJECT, session_id=session_id))


@asynccontextmanager
async def parent_with(path: Path, **turn: Any) -> AsyncIterator[tuple[World, str]]:
    """A root at work with these settings."""
    async with open_world(path) as world:
        args = SpawnArgs(TurnArgs("sleep", **{"model": "scripted", **turn}), PROJECT, new_session=True)
        root = str((await world.tree.spawn(ADMIN, args))["session_id"])
        await world.until(root, "running")
        yield world, root


async def child_of(world: World, parent: str, text: str = "sleep", *, detach: bool = False, **turn: Any) -> str:
    args = SpawnArgs(TurnArgs(text, **turn), detach=detach)
    return str((await world.tree.spawn(session_principal(parent), args))["session_id"])


async def test_a_child_gets_what_its_parent_has_when_it_asks_for_nothing(tmp_path: Path) -> None:
    async with parent_with(tmp_path, **HAS) as (world, root):
        child = await world.row(await child_of(world, root))
        parent = await world.row(root)
        assert (child.parent_id, child.root_id, child.depth) == (root, root, 1)
        assert (child.project_id, child.workspace_id) == (parent.project_id, parent.workspace_id)
        assert (child.model, child.autonomy, child.reasoning) == ("scripted", Autonomy.MEDIUM, parent.reasoning)
        assert child.limits == parent.limits
        assert child.created_by == {"kind": "session", "id": root, "name": root}
        assert child.settings["tools_allowed"] == HAS["tools_allowed"]
        assert child.settings["tools_disallowed"] == ["webfetch"]
        turn = await world.turn(child.session_id, 1)
        assert 9 < turn.overrides["at_most_minutes"] <= 10
        await world.until(child.session_id, "running")
        assert world.agent.sessions[-1].autonomy is Autonomy.MEDIUM
        assert world.agent.sessions[-1].tools_allowed == HAS["tools_allowed"]


async def test_a_child_may_be_given_less(tmp_path: Path) -> None:
    async with parent_with(tmp_path, **HAS) as (world, root):
        less: dict[str, Any] = {
            "autonomy": Autonomy.LOW,
            "tools_allowed": ["read"],
            "tools_disallowed": ["edit"],
            "timeout_minutes": 2,
        }
        child = await world.row(await child_of(world, root, **less))
        assert child.autonomy is Autonomy.LOW
        assert child.settings["tools_allowed"] == ["read"]
        assert child.settings["tools_disallowed"] == ["webfetch", "edit"]
        with pytest.raises(RequestError, match="low"):
            await child_of(world, child.session_id, autonomy=Autonomy.MEDIUM)


async def test_what_the_running_turn_may_counts_not_what_the_session_may(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        root = await world.new("say first")
        await world.settle(root)
        careful = TurnArgs("sleep", autonomy=Autonomy.LOW, tools_disallowed=["bash"])
        await world.tree.message(ADMIN, MessageArgs(careful, root))
        await world.until(root, "running")
        with pytest.raises(RequestError, match="autonomy"):
            await child_of(world, root, autonomy=Autonomy.HIGH)
        child = await world.row(await child_of(world, root))
        assert (child.autonomy, child.settings["tools_disallowed"]) == (Autonomy.LOW, ["bash"])


async def test_a_message_to_a_child_carries_no_more_than_its_sender_has_now(tmp_path: Path) -> None:
    """A child that was spawned freely does not stay a way around what the parent's next turn may not do."""
    async with open_world(tmp_path) as world:
        root = await world.new("sleep")
        await world.until(root, "running")
        child = await child_of(world, root, "say hi")
        await world.settle(child)
        await world.tree.interrupt(ADMIN, root)
        await world.until(root, "idle")
        careful = TurnArgs("sleep", autonomy=Autonomy.LOW, tools_allowed=["read"], tools_disallowed=["webfetch"])
        await world.tree.message(ADMIN, MessageArgs(careful, root))
        await world.until(root, "running")
        await world.tree.message(session_principal(root), MessageArgs(TurnArgs("say again"), child))
        await world.settle(child)
        turn = await world.turn(child, 2)
        assert turn.overrides["autonomy"] == Autonomy.LOW
        assert turn.overrides["tools_allowed"] == ["read"]
        assert turn.overrides["tools_disallowed"] == ["webfetch"]
        assert turn.sender == session_principal(root).as_json()


async def test_a_childs_turn_ends_no_later_than_its_parents_would(tmp_path: Path) -> None:
    async with parent_with(tmp_path, timeout_minutes=2 / 60) as (world, root):
        child = await child_of(world, root)
        with trio.fail_after(8):
            [done] = await world.settle(child)
        assert done["outcome"] == Outcome.TIMED_OUT


@pytest.mark.parametrize(
    ("tool", "allowed", "covered"),
    [
        ("bash", ["bash"], True),
        ("write", ["edit"], True),
        ("oubliette_session", ["oubliette_*"], True),
        ("oubliette_s*", ["oubliette_*"], True),
        ("*", ["*"], True),
        ("bash", [], False),
        ("*", ["bash", "read"], False),
        ("b*", ["b?sh"], False),
        ("a*", ["a?"], False),
        ("docs_*", ["docs_read"], False),
    ],
)
def test_a_tool_is_covered_by_a_list_only_when_all_that_it_means_is(
    tool: str, allowed: list[str], covered: bool
) -> None:
    assert is_covered(tool, allowed) is covered


# --- living and ending together


async def test_a_session_that_is_being_ended_gets_no_child(tmp_path: Path) -> None:
    async with parent_with(tmp_path) as (world, root):
        await world.tree.end(ADMIN, root, "completed")
        with pytest.raises(RequestError) as caught:
            await child_of(world, root)
        assert caught.value.code == "conflict"


async def test_spawns_in_flight_while_the_parent_is_cancelled_leave_no_orphan(tmp_path: Path) -> None:
    async with open_world(tmp_path, defaults={"limits": {"max_active_sessions": 100}}) as world:
        root = await world.new("sleep")
        await world.until(root, "running")
        refused = []

        async def one() -> None:
            try:
                await child_of(world, root)
            except RequestError as error:
                refused.append(error.code)

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(one)
                if number == 20:
                    nursery.start_soon(partial(world.tree.end, ADMIN, root, "cancelled"))
        rows = await world.store.read(partial(sessions.subtree, session_id=root))
        assert {row.status for row in rows} == {SessionStatus.CANCELLED}
        assert len(rows) - 1 + len(refused) == 40
        assert set(refused) <= {"conflict"}
        with trio.fail_after(5):
            while world.tree._live:
                await trio.sleep(0.01)


async def test_a_detached_child_and_its_own_go_on_when_their_parent_ends(tmp_path: Path) -> None:
    async with parent_with(tmp_path) as (world, root):
        tied = await child_of(world, root)
        apart = await child_of(world, root, detach=True)
        await world.until(apart, "running")
        below = await child_of(world, apart)
        for one in (tied, below):
            await world.until(one, "running")
        ended = await world.tree.end(ADMIN, root, "completed")
        assert set(ended["ended"]) == {root, tied}
        for one in (apart, below):
            assert (await world.row(one)).status == SessionStatus.RUNNING
        assert await child_of(world, apart, "say hi")
        await world.tree.end(ADMIN, root, "cancelled")
        for one in (apart, below):
            assert (await world.row(one)).status == SessionStatus.CANCELLED
            done = await world.store.read(partial(turns.get, session_id=one, turn=1))
            assert done is not None
            assert done.outcome is Outcome.CANCELLED


async def test_a_restart_finds_children_and_ends_them_with_their_parent(tmp_path: Path) -> None:
    async with parent_with(tmp_path) as (world, root):
        agent = world.agent
        child = await child_of(world, root)
        await world.until(child, "running")
    async with open_world(tmp_path, agent=agent) as world:
        await world.until(child, "running")
        assert set((await world.tree.end(ADMIN, root, "cancelled"))["ended"]) == {root, child}
