"""Runs the measurements of scripts/benches: all of them, or those that are named. The real daemon, the real agent."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio

TOP = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TOP), str(TOP / "scripts")]

from benches.events import bench_events  # noqa: E402
from benches.house import bench_cli, bench_gateway, bench_memory  # noqa: E402
from benches.relay import bench_relay  # noqa: E402
from benches.report import Table  # noqa: E402
from benches.schedules import bench_schedules  # noqa: E402
from benches.trees import bench_fan_out, bench_teardown  # noqa: E402
from benches.turns import bench_cold, bench_turns  # noqa: E402

from oubliette import clock  # noqa: E402
from oubliette.log import configure_logging  # noqa: E402
from tests.daemon.harness import toolkit_cache  # noqa: E402

Bench = Callable[[Table, Path], Awaitable[None]]
"""Adds its rows to the table; the directory is empty and its own."""

BENCHES: Final[dict[str, Bench]] = {
    "cli": bench_cli,
    "turns": bench_turns,
    "cold": bench_cold,
    "gateway": bench_gateway,
    "relay": bench_relay,
    "events": bench_events,
    "fan-out": bench_fan_out,
    "teardown": bench_teardown,
    "schedules": bench_schedules,
    "memory": bench_memory,
}
"""In the order of the page."""


async def main(names: list[str]) -> Table:
    table = Table()
    configure_logging(level="error", form="console")
    toolkit_cache()
    with tempfile.TemporaryDirectory(prefix="oubliette-bench-") as folder:
        for name, bench in BENCHES.items():
            if not names or name in names:
                place = Path(folder) / name
                place.mkdir()
                await bench(table, place)
    return table


if __name__ == "__main__":
    asked = [word for word in sys.argv[1:] if not word.startswith("--")]
    unknown = set(asked) - set(BENCHES)
    if unknown or set(sys.argv[1:]) - set(asked) - {"--write"} or (asked and "--write" in sys.argv):
        sys.exit(f"usage: scripts/bench [--write | NAME…]\n  names: {' '.join(BENCHES)}")
    measured = trio.run(main, asked)
    if "--write" in sys.argv:
        measured.write(f"{clock.now():%Y-%m-%d}")
