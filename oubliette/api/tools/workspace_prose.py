"""Workspaces and their files in words."""

from __future__ import annotations

from oubliette.api.tools.prose import error_words, fact, lines, untrusted
from oubliette.core.model import Json
from oubliette.safe_text import safe_line


def workspace(data: Json) -> str:
    return lines(
        f"Workspace: {data['workspace_id']}",
        fact("Project", data.get("project_id")),
        fact("State", data.get("state")),
        fact("Error", error_words(data.get("error"))),
        fact("Path", data.get("path")),
        fact("Default", data.get("default") or None),
        fact("Forked from", data.get("forked_from")),
        fact("External id", data.get("external_id")),
        fact("Open sessions", data.get("open_sessions") or None),
        "Deduplicated: yes, this is the first call's result" if data.get("deduplicated") else None,
    )


def workspace_list(data: Json) -> str:
    rows = []
    for one in data["workspaces"]:
        facts = [
            str(one["workspace_id"]),
            str(one.get("state")),
            "default" if one.get("default") else "",
            f"{one['open_sessions']} open sessions" if one.get("open_sessions") else "",
            f"forked from {one['forked_from']}" if one.get("forked_from") else "",
            f"project {one.get('project_id')}",
            safe_line(str(one.get("external_id", "")), 80),
        ]
        rows.append("  ".join(part for part in facts if part))
    return lines(f"Workspaces: {len(rows)}", *rows, fact("Next cursor", data.get("next_cursor")))


def content(data: Json) -> str:
    cut = f" (cut: the first {len(data['text']):,} characters)" if data.get("text_truncated") else ""
    return lines(
        _where(data),
        fact("Path", data.get("path")),
        f"Size: {data.get('size_bytes', 0):,} bytes{cut}",
        "Binary: yes" + ("" if "base64" in data else "; detail full has it in base64") if data.get("binary") else None,
        f"Base64: {data['base64']}" if "base64" in data else None,
        untrusted(data.get("text")) or (None if data.get("binary") else "It is empty."),
    )


def listing(data: Json) -> str:
    found = data.get("files", ())
    more = " (there may be more: narrow the glob)" if data.get("files_truncated") else ""
    rows = [f"{safe_line(str(one['path']))}{_kind(one)}" for one in found]
    return lines(_where(data), f"Files: {len(rows)}{more}", untrusted(*rows))


def _kind(entry: Json) -> str:
    if entry.get("kind") == "file":
        return f"  {entry.get('size_bytes', 0):,} bytes"
    return "/" if entry.get("kind") == "directory" else f"  ({entry.get('kind')})"


def _where(data: Json) -> str:
    return f"Results of: {data['session_id']}" if "session_id" in data else f"Workspace: {data.get('workspace_id')}"


def deleted(data: Json) -> str:
    done = "Workspace deleted" if data.get("deleted") else "Workspace is being deleted"
    return lines(
        f"{done}: {data['workspace_id']}",
        fact("State", data.get("state")),
        fact("Error", error_words(data.get("error"))),
    )
