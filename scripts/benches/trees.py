"""Trees of agents: how fast one fans out, how fast one is gone."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any

import trio

from benches.report import Table, seconds
from oubliette.agent.base import AgentIdle, AgentSessionSpec, Prompt
from oubliette.agent.message_id import new_message_id
from oubliette.agent.opencode import OpenCode
from oubliette.core.model import EventType
from oubliette.daemon import Running
from oubliette.store import events
from tests.daemon import forest
from tests.daemon.in_process import Client, inside, ready_project
from tests.daemon.scripts_for_agents import bash, lines, tool, tools

CHILDREN = 20
ROUNDS = 5
LIMITS = {"limits": forest.LIMITS}
WORK = lines(bash("echo done"), "@echo-last-tool")
"""What each child does, and each prompt beside it: one command, one sentence."""
FAN_OUT = lines(
    tools(*({"action": "spawn", "title": f"child {n}", "message": WORK} for n in range(CHILDREN))),
    tool(action="wait"),
    "@say done",
)


async def bench_fan_out(table: Table, root: Path) -> None:
    """An agent that gives work to twenty children, beside the same work as twenty prompts to the same OpenCode."""
    async with inside(root / "fan-out", "bubblewrap", defaults=LIMITS) as running:
        client = Client(running)
        project = await ready_project(client)
        workspace = project["default_workspace_id"]
        async with running.containers.lease(project["project_id"], workspace) as container:
            agent, directory = container.agent, container.directory(workspace)
            assert isinstance(agent, OpenCode)
            await _straight(agent, directory)
            rounds = [
                (*await _fan_out(running, client, project), await _straight(agent, directory)) for _ in range(ROUNDS)
            ]
    total, children, straight = (statistics.median(one[column] for one in rounds) for column in range(3))
    beside = f"20 prompts straight to one OpenCode: {seconds(straight)}"
    table.add("20 children: first spawned to last done", seconds(children), beside, f"{children / straight:.2f} times")
    table.add("the same, their parent's whole turn", seconds(total), beside, f"{total / straight:.2f} times")


async def _fan_out(running: Running, client: Client, project: dict[str, Any]) -> tuple[float, float]:
    """Seconds of the whole turn, and from the first child's row to the last child's completion."""
    began = trio.current_time()
    spawned = await client.spawn(project["project_id"], FAN_OUT)
    [done] = await client.settle(spawned["session_id"])
    total = trio.current_time() - began
    assert done["outcome"] == "completed", done
    read = partial(events.read_tree, root_id=spawned["session_id"], session_ids=None, since_seq=-1, max_events=10_000)
    log = await running.services.store.read(read)
    born = [event.ts for event in log if event.type is EventType.CHILD_SPAWNED]
    ended = [
        event.ts for event in log if event.type is EventType.COMPLETION and event.session_id != spawned["session_id"]
    ]
    assert len(born) == len(ended) == CHILDREN
    await client.call("session", action="end", session_id=spawned["session_id"])
    return total, (max(ended) - min(born)).total_seconds()


async def _straight(agent: OpenCode, directory: str) -> float:
    """Twenty new sessions of the agent, each with one prompt, all at once; until the last one rests."""

    async def one() -> None:
        session = await agent.create_session(AgentSessionSpec("straight", directory))
        async with agent.events(session, directory) as stream:
            await agent.prompt(session, directory, Prompt(new_message_id(), WORK, "scripted"))
            async for event in stream:
                if isinstance(event, AgentIdle):
                    return

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(CHILDREN):
            nursery.start_soon(one)
    return trio.current_time() - began


async def bench_teardown(table: Table, root: Path) -> None:
    """Cancelling a root with 40 descendants at work, beside 40 aborts sent straight to the same agent."""
    async with inside(root / "teardown", "bubblewrap", defaults=LIMITS) as running:
        client = Client(running)
        project = await ready_project(client)
        rounds = [await _teardown(running, client, project) for _ in range(3)]
    answered, rest, straight = (statistics.median(one[column] for one in rounds) for column in range(3))
    beside = f"40 aborts straight to one OpenCode: {seconds(straight)}"
    table.add(
        "cancel of a tree of 41 at work: nothing runs after", seconds(rest), beside, f"{rest / straight:.2f} times"
    )
    table.add("the same, until the call answers", seconds(answered), beside, f"{answered / straight:.2f} times")


async def _teardown(running: Running, client: Client, project: dict[str, Any]) -> tuple[float, float, float]:
    wood = await forest.plant(running, client, project)
    async with running.containers.lease(wood.project_id, wood.workspace_id) as container:
        agent, directory = container.agent, container.directory(wood.workspace_id)
        assert isinstance(agent, OpenCode)
        began = trio.current_time()
        answered = 0.0

        async def cancel() -> None:
            nonlocal answered
            await client.call("session", action="cancel", session_id=wood.root_id)
            answered = trio.current_time() - began

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel)
            rest = await forest.comes_to_rest(wood, agent, directory, began, seconds=60, tasks=False)
        made = await forest.at_work_straight(agent, directory, forest.DESCENDANTS)
        straight = await forest.abort_straight(agent, directory, made)
    return answered, rest.all, straight
