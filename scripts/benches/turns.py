"""How long one session takes to speak, warm and cold."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path

import trio

from benches.report import Table, median, ms
from oubliette.agent.base import AgentDelta, AgentIdle, AgentSessionSpec, Prompt
from oubliette.agent.message_id import new_message_id
from tests.daemon.in_process import Client, inside, ready_project


async def first_text(client: Client, project_id: str) -> float:
    """From the spawn call to the first piece of text on the event stream."""
    began = trio.current_time()
    spawned = await client.spawn(project_id, "@say hello there")
    url = f"/v1/sessions/{spawned['session_id']}/events?deltas=1"
    took = 0.0
    async with client.http.stream("GET", url) as response:
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                event = json.loads(line[5:])
                text = event["type"] == "message" or (event["type"] == "delta" and event["kind"] == "text")
                if text and not took:
                    took = trio.current_time() - began
                if event["type"] == "completion":
                    break
    return took


async def bench_turns(table: Table, root: Path) -> None:
    """Spawning and the first text, warm, beside the same prompt sent straight to the same agent."""
    async with inside(root / "turns", "bubblewrap") as running:
        client = Client(running)
        project_id = (await ready_project(client))["project_id"]

        async def spawn() -> float:
            began = trio.current_time()
            spawned = await client.spawn(project_id, "@say hi")
            took = trio.current_time() - began
            await client.call("session", action="wait", session_ids=[spawned["session_id"]])
            return took

        async def health() -> float:
            began = trio.current_time()
            await client.http.get("/health")
            return trio.current_time() - began

        ours, baseline = await median(30, spawn), await median(30, health)
        table.add("`session spawn`: call to answer", ms(ours), f"`GET /health`: {ms(baseline)}")

        workspace = (await client.call("project", action="get", project_id=project_id))["default_workspace_id"]
        async with running.containers.lease(project_id, workspace) as container:
            agent, directory = container.agent, container.directory(workspace)

            async def straight() -> float:
                began = trio.current_time()
                session = await agent.create_session(AgentSessionSpec("bench", directory))
                took = 0.0
                async with agent.events(session, directory) as stream:
                    await agent.prompt(session, directory, Prompt(new_message_id(), "@say hello there", "scripted"))
                    async for event in stream:
                        if isinstance(event, AgentDelta) and not took:
                            took = trio.current_time() - began
                        if isinstance(event, AgentIdle):
                            break
                return took

            await straight()
            pairs = [(await first_text(client, project_id), await straight()) for _ in range(20)]
        ours = statistics.median(pair[0] for pair in pairs)
        baseline = statistics.median(pair[1] for pair in pairs)
        table.add(
            "warm spawn to first text",
            ms(ours),
            f"same prompt straight to the same agent: {ms(baseline)}",
            f"{ms(ours - baseline)} more",
        )


async def bench_cold(table: Table, root: Path) -> None:
    """The same for each runtime that is there: docker where DOCKER_HOST names an engine."""
    for runtime in ("bubblewrap", "docker") if "DOCKER_HOST" in os.environ else ("bubblewrap",):
        await _cold(table, root, runtime)


async def _cold(table: Table, root: Path, runtime: str) -> None:
    """A new project's first text: container, agent and turn from nothing."""
    async with inside(root / f"cold-{runtime}", runtime) as running:
        client = Client(running)
        took = []
        for number in range(3):
            project = await client.call("project", action="create", name=f"cold {number}")
            with trio.fail_after(120):
                took.append(await first_text(client, project["project_id"]))
        table.add(f"cold spawn to first text, {runtime}", f"{statistics.median(took):.2f} s")
