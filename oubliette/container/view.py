"""What callers see of a container: SHAPES' Container, from its row and from what its owner knows."""

from __future__ import annotations

from oubliette.container.owner import Owner
from oubliette.core.model import ContainerRow, ContainerState, Json, rfc3339

_RUNS = frozenset({ContainerState.STARTING, ContainerState.READY})


def describe(row: ContainerRow, owner: Owner | None) -> Json:
    """Nothing of it is a secret; ``row`` may be older than the owner's."""
    mine = owner is not None and owner.row is not None and owner.row.container_id == row.container_id
    live = owner if mine else None
    progress = live.progress if live is not None else None
    state = row.state.value
    if progress is not None and row.state is ContainerState.CREATING:
        state = progress.what
    shape: Json = {
        "container_id": row.container_id,
        "project_id": row.project_id,
        "workspace_id": row.workspace_id,
        "runtime": row.runtime,
        "image": row.image,
        "state": state,
        "since": rfc3339(row.since),
        "progress": None,
        "network": row.spec.get("network"),
        "limits": _limits(row.spec),
        "error": row.error,
    }
    if progress is not None:
        shape["progress"] = {
            "what": progress.what,
            "done": progress.done,
            "total": progress.total,
            "unit": progress.unit,
        }
    if row.state in _RUNS:
        shape["agent"] = _agent(row, ready=live is not None and live.ready is not None)
        link = live.ready.link if live is not None and live.ready is not None else None
        relay: Json = {"connected": link is not None and link.connected}
        if link is not None and link.hello is not None:
            relay["version"] = str(link.hello.version)
        shape["relay"] = relay
    return {name: value for name, value in shape.items() if value is not None}


def absent(project_id: str, workspace_id: str | None) -> Json:
    """Of a place that has none."""
    shape = {"project_id": project_id, "workspace_id": workspace_id, "state": ContainerState.ABSENT.value}
    return {name: value for name, value in shape.items() if value is not None}


def _limits(spec: Json) -> Json | None:
    limits = spec.get("limits")
    if not isinstance(limits, dict):
        return None
    return {**limits, "enforced": list(spec.get("enforced", ()))}


def _agent(row: ContainerRow, *, ready: bool) -> Json:
    known: Json = {name: row.agent[name] for name in ("version", "restarts") if name in row.agent}
    return {**known, "state": "ready" if ready else "starting"}
