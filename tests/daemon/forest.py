"""A root with forty descendants on three levels, all of them at work in one container, and what is left of them.

Inner sessions wait for their children through their own tool; leaves sleep in a shell, some of them out of reach of the
shell's process group, or wait for their model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from oubliette.agent.base import AgentSessionSpec, Prompt
from oubliette.agent.message_id import new_message_id
from oubliette.agent.opencode import OpenCode
from oubliette.core.model import EventRow, EventType, SessionRow
from oubliette.daemon import Running
from oubliette.store import events, sessions
from tests.daemon.in_process import Client, ready_project
from tests.daemon.scripts_for_agents import TOOL, bash, lines, tool, tools

WIDTH = (4, 3, 2)
DESCENDANTS = 40
"""4 + 4·3 + 4·3·2."""
LIMITS = {"max_agents_per_session": 60, "max_active_sessions": 60, "max_recursion_depth": 3}
MARK = b"OUBLIETTE_SESSION="
POLL_SECONDS = 0.05
PAGE = 1000
LEAVES = (
    bash("sleep 600"),
    bash("setsid nohup sleep 600 >/dev/null 2>&1 & sleep 600"),
    "@delay 600\n@say too late",
)
"""What the leaves do, in turn. A container has at most 16 model requests at once; a third of 24 wait for theirs."""
SHELLS = 16
"""Leaves that work in a shell."""


def script(level: int = 0, place: int = 0) -> str:
    """What a session of that level does; the root's includes all the others."""
    if level == len(WIDTH):
        return LEAVES[place % len(LEAVES)]
    children: list[dict[str, object]] = [
        {"action": "spawn", "title": f"level {level + 1}", "message": script(level + 1, place * WIDTH[level] + n)}
        for n in range(WIDTH[level])
    ]
    return lines(tools(*children), "@repeat 30", tool(action="wait"))


@dataclass
class Forest:
    """A tree of 41 sessions at work."""

    running: Running
    project_id: str
    workspace_id: str
    root_id: str
    rows: list[SessionRow] = field(default_factory=list)

    @property
    def ids(self) -> set[str]:
        return {row.session_id for row in self.rows}

    @property
    def marks(self) -> set[str]:
        return {row.agent_session_id for row in self.rows if row.agent_session_id is not None}

    async def refresh(self) -> None:
        self.rows = await self.running.services.store.read(partial(sessions.subtree, session_id=self.root_id))

    async def log(self) -> list[EventRow]:
        """Everything of the tree, by ``seq``."""
        found: list[EventRow] = []
        while True:
            at = found[-1].seq if found else -1
            read = partial(events.read_tree, root_id=self.root_id, session_ids=None, since_seq=at, max_events=PAGE)
            page = await self.running.services.store.read(read)
            found += page
            if len(page) < PAGE:
                return found


async def plant(running: Running, client: Client, project: dict[str, Any], *, seconds: float = 240) -> Forest:
    """Spawn the root and wait until all 41 are at work."""
    spawned = await client.spawn(project["project_id"], script(), title="root")
    forest = Forest(running, project["project_id"], spawned["workspace_id"], spawned["session_id"])
    with trio.fail_after(seconds):
        while not await _at_work(forest):
            await trio.sleep(0.3)
    return forest


async def _at_work(forest: Forest) -> bool:
    """Whether everybody waits for what never comes: a child, a command or the model."""
    await forest.refresh()
    if len(forest.rows) < DESCENDANTS + 1:
        return False
    begun = {event.session_id for event in await forest.log() if event.type is EventType.TOOL_CALL and _lasting(event)}
    model = forest.running.gateway.requests_at_work()
    shells = sum(1 for mark in forest.marks if marked([mark])) if len(begun) + model >= DESCENDANTS + 1 else 0
    return shells >= SHELLS


def _lasting(event: EventRow) -> bool:
    tool = event.body["tool"]
    return bool(tool["name"] == "bash" or (tool["name"] == TOOL and tool["input"].get("action") == "wait"))


# --- what is left


def marked(marks: Iterable[str]) -> list[int]:
    """Processes of this host, sandboxes included, that carry one of the marks."""
    wanted = {MARK + mark.encode() for mark in marks}
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = set((entry / "environ").read_bytes().split(b"\0"))
        except OSError:
            continue
        if environment & wanted:
            found.append(int(entry.name))
    return found


def tasks_of(ids: Iterable[str]) -> list[str]:
    """Names of Trio tasks of this process that name one of the sessions."""
    wanted = tuple(ids)
    return [task.name for task in _tasks() if any(one in task.name for one in wanted)]


def _tasks() -> Iterator[trio.lowlevel.Task]:
    root = trio.lowlevel.current_root_task()
    waiting = [root] if root is not None else []
    while waiting:
        task = waiting.pop()
        yield task
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]


async def busy(agent: OpenCode, directory: str) -> set[str]:
    """The agent's sessions that it works on, as it says itself."""
    status = await agent._http.call("GET", "/session/status", query={"directory": directory})
    return {one for one, said in (status or {}).items() if said.get("type") != "idle"}


@dataclass
class Rest:
    """Seconds from the beginning until each kind of work was gone."""

    processes: float = 0.0
    requests: float = 0.0
    tasks: float = 0.0
    agent: float = 0.0

    @property
    def all(self) -> float:
        return max(self.processes, self.requests, self.tasks, self.agent)


async def comes_to_rest(
    forest: Forest, agent: OpenCode, directory: str, began: float, *, seconds: float, tasks: bool = True
) -> Rest:
    """Watch until nothing of the tree runs any more; fails, saying what does, ``seconds`` after ``began``."""
    rest = Rest()
    left: dict[str, object] = {}
    marks, ids = forest.marks, forest.ids
    while True:
        left = {
            "processes": marked(marks),
            "requests": forest.running.gateway.requests_at_work(),
            "tasks": tasks_of(ids) if tasks else [],
            "agent": sorted(marks & await busy(agent, directory)),
        }
        now = trio.current_time() - began
        for name, what in left.items():
            if what and now > seconds:
                raise AssertionError(f"still there after {seconds:g} s: {left}")
            if not what and not getattr(rest, name):
                setattr(rest, name, now)
            elif what:
                setattr(rest, name, 0.0)
        if not any(left.values()):
            return rest
        await trio.sleep(POLL_SECONDS)


# --- the baseline: the same load, straight at the agent


async def at_work_straight(agent: OpenCode, directory: str, count: int) -> list[str]:
    """So many sessions made and prompted through the agent's own API, each with a sleeping shell."""
    made: list[str] = []

    async def one() -> None:
        session = await agent.create_session(AgentSessionSpec("straight", directory))
        made.append(session)
        prompt = Prompt(new_message_id(), LEAVES[0], "scripted")
        await agent.prompt(session, directory, prompt)

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    while len(marked(made)) < count:
        await trio.sleep(0.2)
    return made


async def abort_straight(agent: OpenCode, directory: str, made: list[str]) -> float:
    """Tell the agent at once to abort them all; seconds until it has answered and their processes are gone."""
    began = trio.current_time()

    async def abort(session: str) -> None:
        await agent._http.call("POST", f"/session/{session}/abort", query={"directory": directory}, seconds=60)

    async with trio.open_nursery() as nursery:
        for session in made:
            nursery.start_soon(abort, session)
    while marked(made) or set(made) & await busy(agent, directory):
        await trio.sleep(POLL_SECONDS)
    return trio.current_time() - began


async def planted(running: Running) -> tuple[Client, Forest]:
    """A warm project with its tree at work."""
    client = Client(running)
    project = await ready_project(client, "forest")
    return client, await plant(running, client, project)
