"""A tree of sessions as people see it: merged events folded into one node for each session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from oubliette.cli.render import error_line, tool_line
from oubliette.safe_text import safe_line

Json = dict[str, Any]


@dataclass(slots=True)
class Node:
    """One session. Texts in it may hold anything; ``outcome`` is of its last turn, None while that runs."""

    session_id: str
    title: str
    parent_id: str | None = None
    depth: int = 0
    status: str = "starting"
    outcome: str | None = None
    text: str = ""
    error: str = ""
    tools: dict[str, str] = field(default_factory=dict)
    """Calls in progress, by id: what to show of each."""
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def doing(self) -> str:
        """The newest call in progress."""
        return next(reversed(self.tools.values()), "")

    @property
    def seconds(self) -> float | None:
        """How long its turn has taken; None before it begins."""
        if self.started_at is None:
            return None
        return max(0.0, ((self.ended_at or datetime.now(UTC)) - self.started_at).total_seconds())

    def count(self, usage: Json) -> None:
        """Add what model requests used."""
        self.tokens_in += sum(
            int(usage.get(name, 0)) for name in ("input_tokens", "cache_read_tokens", "cache_write_tokens")
        )
        self.tokens_out += int(usage.get("output_tokens", 0))
        self.cost_usd += float(usage.get("cost_usd", 0.0))


class TreeView:
    """All sessions of one tree, in the order in which they came."""

    def __init__(self, root_id: str, title: str) -> None:
        self.root_id = root_id
        self.nodes: dict[str, Node] = {root_id: Node(root_id, title)}
        self._folds: dict[str, Callable[[Node, Json], str | None]] = {
            "status": self._status,
            "turn_started": self._turn_started,
            "tool_call": self._tool_call,
            "tool_result": self._tool_result,
            "usage": self._usage,
            "child_spawned": self._child_spawned,
            "child_ended": self._child_ended,
            "error": self._error,
            "completion": self._completion,
        }

    @property
    def root(self) -> Node:
        return self.nodes[self.root_id]

    def children(self, node: Node) -> list[Node]:
        return [one for one in self.nodes.values() if one.parent_id == node.session_id]

    def fold(self, event: Json) -> str | None:
        """Take one event; what is worth a line of it."""
        node = self.nodes.get(str(event.get("session_id")))
        fold = self._folds.get(str(event.get("type")))
        if node is None or fold is None:
            return None
        said = fold(node, event)
        return f"{safe_line(node.title, 40)}: {said}" if said is not None else None

    def rows(self) -> Iterator[tuple[str, Node]]:
        """Depth first, each with the lines that join it to its parent."""
        yield "", self.root
        yield from self._below(self.root, "")

    def _below(self, node: Node, lead: str) -> Iterator[tuple[str, Node]]:
        children = self.children(node)
        for child in children:
            last = child is children[-1]
            yield lead + ("└─ " if last else "├─ "), child
            yield from self._below(child, lead + ("   " if last else "│  "))

    # --- one method for each type of event

    def _status(self, node: Node, event: Json) -> None:
        node.status = str((event.get("status") or {}).get("to", node.status))

    def _turn_started(self, node: Node, event: Json) -> None:
        node.outcome, node.ended_at = None, None
        node.started_at = _moment(event)

    def _tool_call(self, node: Node, event: Json) -> str:
        tool = event.get("tool") or {}
        what = tool_line(tool)
        node.tools[str(tool.get("id"))] = what
        return f"→ {what}"

    def _tool_result(self, node: Node, event: Json) -> None:
        node.tools.pop(str((event.get("tool") or {}).get("id")), None)

    def _usage(self, node: Node, event: Json) -> None:
        node.count(event.get("usage") or {})

    def _child_spawned(self, node: Node, event: Json) -> str | None:
        child = event.get("child") or {}
        session_id = str(child.get("session_id"))
        if session_id in self.nodes:
            return None
        title = str(child.get("title") or session_id)
        self.nodes[session_id] = Node(session_id, title, node.session_id, node.depth + 1)
        return f"+ {safe_line(title, 40)}"

    def _child_ended(self, node: Node, event: Json) -> str | None:
        child = event.get("child") or {}
        known = self.nodes.get(str(child.get("session_id")))
        if known is None:
            return None
        known.outcome = known.outcome or str(child.get("outcome") or "") or None
        return f"- {safe_line(known.title, 40)} {child.get('outcome', '')}".rstrip()

    def _error(self, node: Node, event: Json) -> str:
        node.error = str((event.get("error") or {}).get("message", ""))
        return f"! {safe_line(node.error, 160)}"

    def _completion(self, node: Node, event: Json) -> str:
        node.tools.clear()
        node.outcome = str(event.get("outcome") or "unknown")
        node.text = str(event.get("text") or "")
        error = error_line(event["error"]) if event.get("error") else ""
        node.error = error or node.error
        node.ended_at = _moment(event)
        node.tokens_in, node.tokens_out, node.cost_usd = 0, 0, 0.0
        node.count(event.get("usage") or {})
        seconds = node.seconds
        took = f" in {seconds:.1f} s" if seconds is not None else ""
        return node.outcome + took + (f": {safe_line(error, 300)}" if error else "")


class TreeScreen(Protocol):
    """Where a tree is shown. Text given to it may hold anything."""

    def line(self, text: str) -> None:
        """Something has happened that is worth a line where lines are all there is."""

    def working(self, what: str) -> None:
        """What is going on before the first agent speaks."""

    def close(self) -> None:
        """Nothing follows."""


class PlainTree:
    """Lines, for pipes and logs."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._last = ""

    def line(self, text: str) -> None:
        self._write(safe_line(text))

    def working(self, what: str) -> None:
        if what and what != self._last:
            self._last = what
            self._write(f"· {safe_line(what)}")

    def close(self) -> None:
        """Every line is written already."""


def open_tree_screen(view: TreeView) -> TreeScreen:
    """The tree itself in a terminal, lines otherwise."""
    import sys

    if sys.stdout.isatty():
        from oubliette.cli.tree_screen import LiveTree

        return LiveTree(view)
    return PlainTree(lambda text: print(text, flush=True))


def _moment(event: Json) -> datetime | None:
    try:
        return datetime.fromisoformat(str(event.get("ts")))
    except ValueError:
        return None
