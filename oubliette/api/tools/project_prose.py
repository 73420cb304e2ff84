"""Projects and containers in words. Clients of the Go project read these lines; their beginnings are the contract."""

from __future__ import annotations

from oubliette.api.tools.prose import error_words, fact, lines, untrusted, usage_words
from oubliette.core.model import Json
from oubliette.safe_text import safe_line


def created(data: Json) -> str:
    return lines(
        f"Project created: {safe_line(str(data.get('name', '')), 200)}",
        f"ID: {data['project_id']}",
        fact("State", data.get("state")),
        fact("Error", error_words(data.get("error"))),
        _workspace(data),
        fact("Model", data.get("model")),
        "Deduplicated: yes, this is the first call's result" if data.get("deduplicated") else None,
    )


def project(data: Json) -> str:
    counts = data.get("counts") or {}
    return lines(
        f"Project: {safe_line(str(data.get('name', '')), 200)}",
        f"ID: {data['project_id']}",
        fact("State", data.get("state")),
        fact("Error", error_words(data.get("error"))),
        fact("Description", data.get("description")),
        fact("Remote", data.get("remote_url")),
        fact("Branch", data.get("branch")),
        f"Image: {data.get('image') or data.get('container_type') or 'none yet'}",
        _workspace(data),
        f"Container Status: {_container_state(data)}",
        fact("Model", data.get("model")),
        fact("Autonomy", data.get("autonomy")),
        fact("Network", data.get("network")),
        fact("Sessions", f"{counts['sessions']} ({counts.get('open', 0)} open)" if counts.get("sessions") else None),
        fact("Limits", ", ".join(f"{name} {value}" for name, value in (data.get("limits") or {}).items())),
        fact("Usage", usage_words(data.get("usage"))),
    )


def _workspace(data: Json) -> str | None:
    """``Workspace: <path>/<uuid>``; the path only where it may be seen."""
    workspace = data.get("default_workspace_id")
    if workspace is None:
        return None
    path = data.get("path")
    return f"Workspace: {path}/{workspace}" if path else f"Workspace: {workspace}"


def _container_state(data: Json) -> str:
    default = data.get("default_workspace_id")
    states = {one.get("workspace_id"): one.get("state", "absent") for one in data.get("containers", ())}
    return str(states.get(default) or next(iter(states.values()), "absent"))


def project_list(data: Json) -> str:
    rows = [
        f"{one['project_id']}  {one.get('state')}  {safe_line(str(one.get('name', '')), 80)}"
        + (f"  {one['counts']['open']} open sessions" if (one.get("counts") or {}).get("open") else "")
        for one in data["projects"]
    ]
    return lines(f"Projects: {len(rows)}", *rows, fact("Next cursor", data.get("next_cursor")))


def deleted(data: Json) -> str:
    done = "Project deleted" if data.get("deleted") else "Project is being deleted"
    return lines(
        f"{done}: {data['project_id']}",
        fact("State", None if data.get("deleted") else data.get("state")),
        fact("Error", error_words(data.get("error"))),
    )


# --- containers


def container(data: Json) -> str:
    agent, progress = data.get("agent") or {}, data.get("progress") or {}
    return lines(
        f"Container: {data.get('container_id', 'none')}",
        fact("Project", data.get("project_id")),
        fact("Workspace", data.get("workspace_id")),
        f"Container Status: {data.get('state', 'absent')}",
        fact(
            "Progress", f"{progress.get('what')} {progress.get('done')}/{progress.get('total')}" if progress else None
        ),
        fact("Error", error_words(data.get("error"))),
        fact("Runtime", data.get("runtime")),
        fact("Image", data.get("image")),
        fact("Network", data.get("network")),
        fact("Agent", f"{agent.get('version', '')} {agent.get('state', '')}".strip() if agent else None),
        fact("Enforced", ", ".join((data.get("limits") or {}).get("enforced", ()))),
    )


def container_list(data: Json) -> str:
    rows = [
        f"{one.get('container_id')}  {one.get('state')}  project {one.get('project_id')}"
        + (f"  workspace {one['workspace_id']}" if one.get("workspace_id") else "")
        for one in data["containers"]
    ]
    return lines(f"Containers: {len(rows)}", *rows)


def executed(data: Json) -> str:
    cut = [name for name in ("stdout", "stderr") if data.get(f"{name}_truncated")]
    return lines(
        f"Exec: {data['exec_id']}",
        fact("State", data.get("state")),
        f"Exit code: {data['exit_code']}" if "exit_code" in data else None,
        "Timed out: yes" if data.get("timed_out") else None,
        fact("Error", error_words(data.get("error"))),
        fact("Cut", ", ".join(f"{name} of {data[f'{name}_bytes']} bytes" for name in cut)),
        untrusted(
            data.get("stdout"),
            f"[stderr]\n{data['stderr']}" if data.get("stderr") else None,
        ),
    )


def logs(data: Json) -> str:
    return lines(
        f"Container: {data.get('container_id', 'none')}",
        untrusted(data.get("text")) or "No logs.",
    )
