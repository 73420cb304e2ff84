"""What to do with the containers that a start of the daemon finds: decided for each alone, pure.

Adopted is only what instance, project, workspace and generation say is a row's. Anything else that carries our label is
kept and warned about, unless it is provably an old generation of a place of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from oubliette.container.layout import container_name, is_of
from oubliette.core.model import ContainerRow, ContainerState
from oubliette.runtime.base import LABEL_PREFIX, ContainerInfo

Fate = Literal["adopt", "stop", "lost", "rest"]
"""Go on with it; stop it (its row says that it does not run); it is gone though its row says that it runs; nothing."""

_RUNNING = frozenset(
    {
        ContainerState.PULLING,
        ContainerState.BUILDING,
        ContainerState.CREATING,
        ContainerState.STARTING,
        ContainerState.READY,
    }
)


@dataclass(slots=True)
class Plan:
    """``fates`` of rows by container id; names of containers to remove; names of those nobody can explain."""

    fates: dict[str, Fate] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def plan(instance: str, rows: Sequence[ContainerRow], found: Sequence[ContainerInfo]) -> Plan:
    """``rows``: all that were made with this runtime; ``found``: all containers with our instance's label."""
    result = Plan()
    by_name = {info.name: info for info in found}
    explained = set()
    newest: dict[tuple[str, str], int] = {}
    for row in rows:
        place = (row.project_id, row.workspace_id or "-")
        newest[place] = max(newest.get(place, 0), row.generation)
    for row in rows:
        info = by_name.get(container_name(instance, row.container_id))
        ours = info is not None and is_of(info, instance, row)
        if info is not None and ours:
            explained.add(info.name)
        result.fates[row.container_id] = _fate(row, info if ours else None)
    for info in found:
        if info.name not in explained:
            (result.stale if _is_stale(info.labels, newest) else result.unknown).append(info.name)
    return result


def _fate(row: ContainerRow, info: ContainerInfo | None) -> Fate:
    runs = info is not None and info.state == "running"
    if row.state in _RUNNING:
        if runs:
            return "adopt"
        # One that was being made may never have come to be; the next lease makes it.
        return "lost" if row.state is ContainerState.READY else "rest"
    return "stop" if runs else "rest"


def _is_stale(labels: Mapping[str, str], newest: Mapping[tuple[str, str], int]) -> bool:
    place = (labels.get(f"{LABEL_PREFIX}project", ""), labels.get(f"{LABEL_PREFIX}workspace", ""))
    generation = labels.get(f"{LABEL_PREFIX}generation", "")
    return generation.isdecimal() and int(generation) < newest.get(place, 0)
