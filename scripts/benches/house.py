"""The daemon's own weight: its memory, its command line, its gateway."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from benches.report import Table, ms
from tests.daemon.harness import open_daemon


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


async def bench_cli(table: Table, _root: Path) -> None:
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


async def bench_gateway(table: Table, _root: Path) -> None:
    """A streamed answer through the gateway beside the same request sent to its upstream."""
    from tests.gateway.bench import measure  # the world of the gateway's tests, with an upstream of its own

    through, direct = await measure(rounds=40)
    table.add(
        "gateway: request to first byte",
        ms(through),
        f"straight to the upstream: {ms(direct)}",
        f"{ms(through - direct)} more",
    )
