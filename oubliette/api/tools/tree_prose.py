"""A tree of sessions, and what is left of its limits, in words."""

from __future__ import annotations

from oubliette.api.tools.prose import fact, lines, status_words, untrusted, usage_words
from oubliette.core.model import Json
from oubliette.safe_text import safe_line


def tree(data: Json) -> str:
    counts = data.get("counts") or {}
    said = ", ".join(
        f"{counts[name]} {name}" for name in ("open", "running", "waiting", "paused", "failed") if counts.get(name)
    )
    return lines(
        f"Tree: {data['root_id']}",
        fact("Project", data.get("project_id")),
        f"Sessions: {counts.get('total', 0)}" + (f" ({said})" if said else ""),
        fact("Usage", usage_words(data.get("usage"))),
        *limit_lines(data.get("limits") or {}),
        *(_node(node) for node in data.get("nodes", ())),
        fact("Next cursor", data.get("next_cursor")),
        untrusted(*(f"{node['session_id']}: {safe_line(str(node.get('title', '')), 80)}" for node in data["nodes"])),
    )


def _node(node: Json) -> str:
    """Without its title: an agent may have written that."""
    outcome = f", last turn {node['outcome']}" if node.get("outcome") else ""
    asks = f", {node['pending']} asks pending" if node.get("pending") else ""
    return f"{'  ' * int(node.get('depth', 0))}{node['session_id']}  {status_words(node)}{outcome}{asks}"


def limits(data: Json) -> str:
    about = fact("Tree", data.get("root_id")) or fact("Project", data.get("project_id")) or "Defaults of this daemon"
    return lines(about, *limit_lines(data))


def limit_lines(data: Json) -> list[str]:
    """One for each limit: used, of how much."""
    names = {
        "depth": "Depth",
        "agents": "Agents",
        "active": "At work",
        "tokens": "Tokens",
        "cost_usd": "USD",
        "cost_usd_today": "USD today",
    }
    found = []
    for name, words in names.items():
        shape = data.get(name)
        if not shape:
            continue
        used = f"{shape['used']:,}" if "used" in shape else ""
        limit = f"{shape['limit']:,}" if "limit" in shape else "no limit"
        held = f", {shape['reserved']:,} reserved" if shape.get("reserved") else ""
        found.append(f"{words}: {used} of {limit}{held}" if used else f"{words}: {limit}")
    return found
