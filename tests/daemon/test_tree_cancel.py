"""Cancelling large trees of real agents: from the commit nothing new starts, and soon nothing runs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import trio

from oubliette.agent.opencode import OpenCode
from oubliette.core.model import EventType, Outcome, SessionRow, SessionStatus
from oubliette.daemon import Running
from oubliette.gateway.metering import Meter, Ticket
from oubliette.session import ending, units
from oubliette.store import sessions, turns
from oubliette.store.database import Tx
from tests.daemon import forest
from tests.daemon.forest import Forest
from tests.daemon.harness import Daemon, open_daemon, ready, start
from tests.daemon.in_process import Client, inside, ready_project
from tests.daemon.processes import appear, vanish
from tests.daemon.scripts_for_agents import bash, lines, tool, tools

pytestmark = [pytest.mark.daemon, pytest.mark.agent, pytest.mark.engine]

PROMISED_SECONDS = 2.0
GUARD_SECONDS = 5 * PROMISED_SECONDS
BEGINNINGS = {EventType.TURN_QUEUED, EventType.TURN_STARTED, EventType.CHILD_SPAWNED}


@dataclass
class Commit:
    """The moment from which nothing new may start."""

    seq: int = -1
    passed: bool = False
    admitted: list[str] = field(default_factory=list)
    """Sessions whose model requests were admitted after it."""


@pytest.fixture
def commit(monkeypatch: pytest.MonkeyPatch) -> Commit:
    noted = Commit()
    mark, finish, admit = units.mark_ending, ending.finish, Meter.admit

    def marking(tx: Tx, session_id: str, how: Literal["completed", "cancelled"], at: datetime) -> list[SessionRow]:
        taken = mark(tx, session_id, how, at)
        row = sessions.get(tx, session_id)
        if row is not None and row.depth == 0 and noted.seq < 0:
            noted.seq = row.last_seq
        return taken

    async def finishing(*args: Any, **named: Any) -> None:
        noted.passed = True
        await finish(*args, **named)

    async def admitting(meter: Meter, *args: Any, **named: Any) -> Ticket:
        late = noted.passed
        ticket = await admit(meter, *args, **named)
        if late:
            noted.admitted.append(ticket.session_id)
        return ticket

    monkeypatch.setattr(units, "mark_ending", marking)
    monkeypatch.setattr(ending, "finish", finishing)
    monkeypatch.setattr(Meter, "admit", admitting)
    return noted


@pytest.fixture
async def running(request: pytest.FixtureRequest, tmp_path: Path, engine_host: str) -> AsyncIterator[Running]:
    runtime = getattr(request, "param", "bubblewrap")
    environ = {"DOCKER_HOST": engine_host} if runtime == "docker" else {}
    async with inside(tmp_path / "home", runtime, defaults={"limits": forest.LIMITS}, environ=environ) as running:
        yield running


async def _cancel(client: Client, wood: Forest, agent: OpenCode, directory: str) -> tuple[float, forest.Rest]:
    """Cancel the root and watch: seconds until the call answered, and until each kind of work was gone."""
    answered = 0.0
    began = trio.current_time()

    async def call() -> None:
        nonlocal answered
        await client.call("session", action="cancel", session_id=wood.root_id)
        answered = trio.current_time() - began
        await wood.refresh()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        rest = await forest.comes_to_rest(wood, agent, directory, began, seconds=GUARD_SECONDS)
    # Those that were being spawned when it began to look are known by now.
    await forest.comes_to_rest(wood, agent, directory, began, seconds=GUARD_SECONDS)
    return answered, rest


async def _accounted_for(running: Running, wood: Forest, commit: Commit) -> None:
    """Every session says how it ended, and nothing of the tree has begun since the commit."""
    for row in wood.rows:
        assert (row.status, row.open, row.ending) == (SessionStatus.CANCELLED, False, "cancelled"), row
        turn = await running.services.store.read(partial(turns.get, session_id=row.session_id, turn=row.turn))
        assert turn is not None
        assert turn.outcome is Outcome.CANCELLED
    log = await wood.log()
    assert [event.seq for event in log] == list(range(len(log)))
    assert not [event for event in log if event.seq > commit.seq and event.type in BEGINNINGS]
    for row in wood.rows:
        types = [event.type for event in log if event.session_id == row.session_id]
        assert types.count(EventType.COMPLETION) == types.count(EventType.TURN_STARTED) <= 1
    ended = [event.body["child"]["session_id"] for event in log if event.type is EventType.CHILD_ENDED]
    assert sorted(ended) == sorted(wood.ids - {wood.root_id})
    assert not wood.ids.intersection(commit.admitted)


@pytest.mark.parametrize("running", ["bubblewrap", "docker"], indirect=True)
async def test_a_root_with_forty_descendants_is_gone_soon_after_cancel(
    running: Running, commit: Commit, record_property: Callable[[str, object], None]
) -> None:
    client, wood = await forest.planted(running)
    assert len(wood.rows) == forest.DESCENDANTS + 1
    assert max(row.depth for row in wood.rows) == 3
    async with running.containers.lease(wood.project_id, wood.workspace_id) as container:
        agent, directory = container.agent, container.directory(wood.workspace_id)
        assert isinstance(agent, OpenCode)
        assert await forest.busy(agent, directory) >= wood.marks
        assert len(forest.tasks_of(wood.ids)) >= len(wood.rows)
        answered, rest = await _cancel(client, wood, agent, directory)
        await _accounted_for(running, wood, commit)
        log = await wood.log()
        assert not [event for event in log if event.seq > commit.seq and event.type is EventType.TOOL_CALL]

        # The same agent, told by its own API, with as many sessions at work. An open tree pays for their requests.
        payer = await client.spawn(wood.project_id, "@say I pay")
        await client.settle(payer["session_id"])
        with trio.fail_after(60):
            made = await forest.at_work_straight(agent, directory, forest.DESCENDANTS)
            straight = await forest.abort_straight(agent, directory, made)
    await client.http.aclose()
    told = {"answered": answered, "rest": rest.all, "straight": straight}
    record_property("seconds", {name: round(value, 2) for name, value in told.items()})
    print(f"\ncancel of 41: answered after {answered:.2f} s, {rest}; 40 aborts straight at the agent: {straight:.2f} s")


@pytest.mark.parametrize("wanted", [9, 25])
async def test_what_is_being_spawned_while_cancel_comes_is_cancelled_or_never_was(
    running: Running, commit: Commit, wanted: int
) -> None:
    """Every agent of the tree goes on spawning; cancel comes when there are so many."""
    leaf = lines("@repeat 30", tool(action="spawn", message=bash("sleep 600"), title="leaf %i%"))
    branch = lines("@repeat 12", tool(action="spawn", message=leaf, title="branch"))
    client = Client(running)
    project = await ready_project(client)
    spawned = await client.spawn(project["project_id"], branch, title="root")
    wood = Forest(running, project["project_id"], spawned["workspace_id"], spawned["session_id"])
    async with running.containers.lease(wood.project_id, wood.workspace_id) as container:
        agent, directory = container.agent, container.directory(wood.workspace_id)
        assert isinstance(agent, OpenCode)
        with trio.fail_after(120):
            while len(wood.rows) < wanted:
                await wood.refresh()
        await _cancel(client, wood, agent, directory)
        assert len(wood.rows) >= wanted
        assert len({row.depth for row in wood.rows}) >= 3
        await _accounted_for(running, wood, commit)
    await client.http.aclose()


async def test_a_daemon_killed_in_the_middle_of_a_cancel_goes_on_with_it_when_it_starts(tmp_path: Path) -> None:
    """Killed some moments after the call was made. Whenever that is: the tree ends, and its commands with it."""
    home = tmp_path / "home"
    home.mkdir()
    async with open_daemon(home, {"server": {"address": "127.0.0.1:0"}, "runtime": "bubblewrap"}) as daemon:
        project = await daemon.call("project", action="create", name="twice")
        for number, moment in enumerate((0.005, 0.02, 0.05, 0.2)):
            sleep = f"sleep 600.{os.getpid()}{number}"  # found by these words on the whole host
            child: dict[str, object] = {"action": "spawn", "title": "child", "message": bash(sleep)}
            spawned = await daemon.call(
                "session",
                action="spawn",
                project_id=project["project_id"],
                message=lines(tools(child, child, child), "@repeat 20", tool(action="wait")),
                model="scripted",
                new_session=True,
            )
            root = spawned["session_id"]
            await appear(sleep, 3)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_impatient, daemon, root, moment)
            daemon.kill()
            again = await ready(start(home))
            daemon.process, daemon.url, daemon.token = again.process, again.url, again.token
            with trio.fail_after(60):
                while (await daemon.call("session", action="get", session_id=root))["open"]:
                    # Killed before the commit: nothing has happened. After it this is refused or changes nothing.
                    await daemon.try_call("session", action="cancel", session_id=root)
                    await trio.sleep(0.1)
                tree = await daemon.call("session", action="tree", session_id=root)
                assert {node["status"] for node in tree["nodes"]} == {"cancelled"}
                assert len(tree["nodes"]) == 4
                for node in tree["nodes"]:
                    log = await daemon.events(node["session_id"])
                    assert [event["type"] for event in log].count("completion") == 1
            await vanish(sleep, timeout_seconds=GUARD_SECONDS)


async def _impatient(daemon: Daemon, root: str, seconds: float) -> None:
    """Ask for a cancel and leave after so long."""
    with trio.move_on_after(seconds):
        await daemon.try_call("session", action="cancel", session_id=root)
