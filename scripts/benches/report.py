"""What a measurement leaves: a line of the table in docs/performance.md."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
MARKS = ("<!-- table -->", "<!-- /table -->")


@dataclass
class Table:
    """Rows of the report: what, ours, the baseline, their relation."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)

    def add(self, what: str, ours: str, baseline: str = "", relation: str = "") -> None:
        self.rows.append((what, ours, baseline, relation))
        print(f"{what:60} {ours:>16} {baseline:>44} {relation}", flush=True)

    def markdown(self) -> str:
        lines = ["| what | Oubliette | beside, in the same run | relation |", "| --- | --- | --- | --- |"]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in self.rows)])

    def write(self, date: str) -> None:
        """Put the table into the page, in place of the one that is there."""
        before, _, rest = PAGE.read_text().partition(MARKS[0])
        _, _, after = rest.partition(MARKS[1])
        PAGE.write_text(f"{before}{MARKS[0]}\nMeasured {date} on two cores.\n\n{self.markdown()}\n{MARKS[1]}{after}")


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds >= 0.001 else f"{seconds * 1000:.3f} ms"


def seconds(value: float) -> str:
    return f"{value:.2f} s"


async def median(count: int, once: Callable[[], Awaitable[float]]) -> float:
    return statistics.median([await once() for _ in range(count)])
