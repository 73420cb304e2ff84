"""Choosing the runtime by trying each, in order; what was tried and why it was passed over is kept for ``doctor``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from oubliette.errors import RuntimeUnavailable
from oubliette.runtime.base import Runtime, RuntimeReport

AUTO_ORDER = ("apple-container", "docker", "podman", "bubblewrap")


@dataclass(frozen=True, slots=True)
class Choice:
    """The runtime in use and every report on the way to it."""

    runtime: Runtime
    reports: Sequence[RuntimeReport]


async def choose_runtime(wanted: str, candidates: Mapping[str, Callable[[], Runtime]]) -> Choice:
    """The named runtime, or with ``auto`` the first of AUTO_ORDER that works when tried.

    Raises RuntimeUnavailable with every reason when none does. A named one is never silently replaced by another.
    """
    names = [name for name in AUTO_ORDER if name in candidates] if wanted == "auto" else [wanted]
    reports: list[RuntimeReport] = []
    for name in names:
        make = candidates.get(name)
        if make is None:
            raise RuntimeUnavailable(
                f"The runtime {name!r} is not available on this system.",
                hint=f"Choose one of: auto, {', '.join(sorted(candidates))}.",
            )
        runtime = make()
        report = await runtime.probe()
        reports.append(report)
        if report.ok:
            return Choice(runtime, reports)
    tried = "; ".join(f"{report.name}: {report.reason}" for report in reports)
    hints = " ".join(report.hint for report in reports if report.hint)
    raise RuntimeUnavailable(f"No container runtime works here ({tried}).", hint=hints)
