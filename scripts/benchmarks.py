"""The measurements of scripts/bench: the real daemon in this process, the real agent in real sandboxes."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import trio

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP))

from oubliette import clock  # noqa: E402
from oubliette.agent.base import AgentDelta, AgentIdle, AgentSessionSpec, Prompt  # noqa: E402
from oubliette.agent.message_id import new_message_id  # noqa: E402
from oubliette.config import load_config  # noqa: E402
from oubliette.core.model import EventType, NewEvent  # noqa: E402
from oubliette.daemon import Running, run_tiers  # noqa: E402
from oubliette.home import Home  # noqa: E402
from oubliette.log import configure_logging  # noqa: E402
from oubliette.store import events  # noqa: E402
from tests.daemon.harness import open_daemon, toolkit_cache, write_config  # noqa: E402

PAGE = TOP / "docs" / "performance.md"
MARKS = ("<!-- table -->", "<!-- /table -->")


@dataclass
class Table:
    """Rows of the report: what, ours, the baseline, their relation."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)

    def add(self, what: str, ours: str, baseline: str = "", relation: str = "") -> None:
        self.rows.append((what, ours, baseline, relation))
        print(f"{what:60} {ours:>16} {baseline:>36} {relation}", flush=True)

    def markdown(self) -> str:
        lines = ["| what | Oubliette | beside, in the same run | relation |", "| --- | --- | --- | --- |"]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in self.rows)])


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


async def median(count: int, once: Callable[[], Awaitable[float]]) -> float:
    return statistics.median([await once() for _ in range(count)])


@asynccontextmanager
async def inside(root: Path, runtime: str) -> AsyncIterator[Running]:
    """The daemon in this process, on a home of its own."""
    root.mkdir()
    write_config(root, {"server": {"address": "127.0.0.1:0"}, "runtime": runtime})
    home = Home(root)
    config, _ = load_config(home.config_file, os.environ)
    home.create()
    configure_logging(level="error", form="console", directory=home.logs, secrets=config.secrets())
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        running: Running = await nursery.start(partial(run_tiers, home, config, os.environ, stop))
        try:
            yield running
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(60):
                client = Client(running)
                for project in (await client.call("project", action="list"))["projects"]:
                    await client.call("project", action="delete", project_id=project["project_id"], force=True)
                    await running.services.projects.idle(project["project_id"])
            stop.set()


class Client:
    def __init__(self, running: Running) -> None:
        self._running = running
        self.http = httpx.AsyncClient(
            base_url=running.url, headers={"authorization": f"Bearer {running.secret}"}, timeout=120
        )

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        response = await self.http.post(f"/v1/tools/{tool}", json=arguments)
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def spawn(self, project_id: str, message: str) -> dict[str, Any]:
        return await self.call(
            "session", action="spawn", project_id=project_id, message=message, model="scripted", new_session=True
        )

    async def first_text(self, project_id: str) -> float:
        """From the spawn call to the first piece of text on the event stream."""
        began = trio.current_time()
        spawned = await self.spawn(project_id, "@say hello there")
        url = f"/v1/sessions/{spawned['session_id']}/events?deltas=1"
        took = 0.0
        async with self.http.stream("GET", url) as response:
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    event = json.loads(line[5:])
                    text = event["type"] == "message" or (event["type"] == "delta" and event["kind"] == "text")
                    if text and not took:
                        took = trio.current_time() - began
                    if event["type"] == "completion":
                        break
        return took


async def ready_project(client: Client, running: Running) -> str:
    project = await client.call("project", action="create", name="bench")
    with trio.fail_after(120):
        spawned = await client.spawn(project["project_id"], "@say warm")
        await client.call("session", action="wait", session_ids=[spawned["session_id"]])
    return str(project["project_id"])


async def bench_turns(table: Table, root: Path) -> None:
    """Spawning and the first text, warm, beside the same prompt sent straight to the same agent."""
    async with inside(root / "turns", "bubblewrap") as running:
        client = Client(running)
        project_id = await ready_project(client, running)

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
            pairs = [(await client.first_text(project_id), await straight()) for _ in range(20)]
        ours = statistics.median(pair[0] for pair in pairs)
        baseline = statistics.median(pair[1] for pair in pairs)
        table.add(
            "warm spawn to first text",
            ms(ours),
            f"same prompt straight to the same agent: {ms(baseline)}",
            f"{ms(ours - baseline)} more",
        )


async def bench_cold(table: Table, root: Path, runtime: str) -> None:
    """A new project's first text: container, agent and turn from nothing."""
    async with inside(root / f"cold-{runtime}", runtime) as running:
        client = Client(running)
        took = []
        for number in range(3):
            project = await client.call("project", action="create", name=f"cold {number}")
            with trio.fail_after(120):
                took.append(await client.first_text(project["project_id"]))
        table.add(f"cold spawn to first text, {runtime}", f"{statistics.median(took):.2f} s")


READER = """
import socket, sys, threading, time
host, port, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
tokens, count, wanted = sys.argv[4].split(","), int(sys.argv[5]), int(sys.argv[6])
ready, done = [], []
def read(token):
    s = socket.create_connection((host, port))
    s.sendall(f"GET {path} HTTP/1.1\\r\\nHost: {host}:{port}\\r\\nAuthorization: Bearer {token}\\r\\n\\r\\n".encode())
    seen, tail = 0, b""
    ready.append(1)
    while seen < wanted:
        data = s.recv(1 << 20)
        if not data: break
        data = tail + data
        seen += data.count(b"\\nid:") + data.startswith(b"id:")
        tail = data[-3:] if not data.endswith(b"\\nid:") else b""
    done.append(seen)
threads = [threading.Thread(target=read, args=(tokens[n % len(tokens)],)) for n in range(count)]
[t.start() for t in threads]
while len(ready) < count: time.sleep(0.01)
time.sleep(0.5)
print("ready", flush=True)
[t.join() for t in threads]
print(min(done), flush=True)
"""


async def bench_events(table: Table, root: Path) -> None:
    """Events through the store to nobody, one reader and fifty."""
    total, batch = 5000, 50
    async with inside(root / "events", "bubblewrap") as running:
        client = Client(running)
        # A token may hold 20 streams.
        made = [await client.call("token", action="create", name=f"reader {n}", scope="admin:ro") for n in range(3)]
        secrets = ",".join(token["secret"] for token in made)
        project_id = await ready_project(client, running)
        host, port = running.url.removeprefix("http://").split(":")
        for readers in (0, 1, 50):
            spawned = await client.spawn(project_id, "@say hi")
            session_id = spawned["session_id"]
            waited = await client.call("session", action="wait", session_ids=[session_id])
            last = waited["sessions"][0]["last_index"] + 2
            await client.call("session", action="message", session_id=session_id, message="@delay 120")
            await trio.sleep(1)
            process = None
            if readers:
                page = await client.call("session", action="events", session_id=session_id)
                last = page["last_index"]
                path = f"/v1/sessions/{session_id}/events?since={last}"
                process = subprocess.Popen(
                    [sys.executable, "-c", READER, host, port, path, secrets, str(readers), str(total)],
                    stdout=subprocess.PIPE,
                )
                assert process.stdout is not None
                await trio.to_thread.run_sync(process.stdout.readline)
            began = time.perf_counter()
            for at in range(0, total, batch):
                new = [
                    NewEvent(EventType.MESSAGE, 1, {"role": "assistant", "part": f"p{n}", "text": "x" * 200})
                    for n in range(at, at + batch)
                ]
                await running.services.store.write(partial(_append, session_id=session_id, new=new))
            if process is not None:
                with trio.fail_after(120):
                    await trio.to_thread.run_sync(process.wait)
            took = time.perf_counter() - began
            who = {0: "nobody", 1: "1 SSE reader", 50: "50 SSE readers"}[readers]
            table.add(f"events through the store to {who}", f"{total / took:,.0f}/s")
            await client.call("session", action="cancel", session_id=session_id)


def _append(tx: Any, session_id: str, new: list[NewEvent]) -> None:
    for one in new:
        events.append(tx, session_id, one)


async def bench_memory(table: Table, root: Path) -> None:
    """The daemon's resident memory."""

    def resident(pid: int) -> float:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return 0.0

    home = root / "memory"
    home.mkdir()
    async with open_daemon(home, {"server": {"address": "127.0.0.1:0"}, "runtime": "bubblewrap"}) as daemon:
        idle = resident(daemon.process.pid)
        project = await daemon.call("project", action="create", name="memory")
        for _ in range(20):
            spawned = await daemon.call(
                "session",
                action="spawn",
                project_id=project["project_id"],
                message="@say hi",
                model="scripted",
                new_session=True,
            )
            await daemon.settle(spawned["session_id"])
        held = resident(daemon.process.pid)
    table.add("daemon's memory, idle", f"{idle:.0f} MiB")
    table.add("daemon's memory, 20 idle sessions", f"{held:.0f} MiB", "", f"{held - idle:.0f} MiB more")


def bench_cli(table: Table) -> None:
    """The shortest commands beside an empty Python."""

    def best(*command: str) -> float:
        took = []
        for _ in range(7):
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            took.append(time.perf_counter() - began)
        return statistics.median(took)

    empty = best(sys.executable, "-c", "pass")
    ours = best(sys.executable, "-m", "oubliette", "--help")
    table.add("`oubliette --help`", ms(ours), f"`python -c pass`: {ms(empty)}", f"{ours / empty:.1f} times")


async def bench_gateway(table: Table) -> None:
    """A streamed answer through the gateway beside the same request sent to its upstream."""
    from tests.gateway.bench import measure  # the world of the gateway's tests, with an upstream of its own

    through, direct = await measure(rounds=40)
    table.add(
        "gateway: request to first byte",
        ms(through),
        f"straight to the upstream: {ms(direct)}",
        f"{ms(through - direct)} more",
    )


async def main() -> None:
    table = Table()
    toolkit_cache()
    with tempfile.TemporaryDirectory(prefix="oubliette-bench-") as folder:
        root = Path(folder)
        bench_cli(table)
        await bench_turns(table, root)
        await bench_cold(table, root, "bubblewrap")
        if "DOCKER_HOST" in os.environ:
            await bench_cold(table, root, "docker")
        await bench_gateway(table)
        await bench_events(table, root)
        await bench_memory(table, root)
    if "--write" in sys.argv:
        page = PAGE.read_text()
        before, _, rest = page.partition(MARKS[0])
        _, _, after = rest.partition(MARKS[1])
        date = f"{clock.now():%Y-%m-%d}"
        PAGE.write_text(f"{before}{MARKS[0]}\nMeasured {date} on two cores.\n\n{table.markdown()}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    trio.run(main)
