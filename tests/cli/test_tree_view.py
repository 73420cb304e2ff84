"""Merged events folded into a tree, as lines and as a picture."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from oubliette.cli.tree_screen import LiveTree
from oubliette.cli.tree_view import PlainTree, TreeView

Json = dict[str, Any]
EVIL = "\x1b]0;owned\x07[bold red]x[/]\u202egnp\x9b2J"


def at(second: float) -> str:
    return f"2026-11-22T08:15:{second:06.3f}Z"


def family(title: str = "child") -> list[Json]:
    """A root with a child and a grandchild; the child fails."""
    return [
        {"session_id": "r", "type": "turn_started", "ts": at(1), "turn": 1},
        {"session_id": "r", "type": "status", "status": {"to": "running"}},
        {"session_id": "r", "type": "child_spawned", "child": {"session_id": "a", "title": title}},
        {"session_id": "a", "type": "turn_started", "ts": at(2), "turn": 1},
        {"session_id": "a", "type": "status", "status": {"to": "running"}},
        {"session_id": "a", "type": "child_spawned", "child": {"session_id": "b", "title": "grandchild"}},
        {"session_id": "a", "type": "tool_call", "tool": {"id": "c1", "name": "bash", "input": {"command": title}}},
        {"session_id": "a", "type": "usage", "usage": {"input_tokens": 1200, "output_tokens": 34, "cost_usd": 0.01}},
        {"session_id": "b", "type": "completion", "ts": at(4), "outcome": "completed", "text": "leaf"},
        {"session_id": "a", "type": "tool_result", "tool": {"id": "c1", "status": "completed"}},
        {"session_id": "a", "type": "error", "error": {"message": "no luck"}},
        {
            "session_id": "a",
            "type": "completion",
            "ts": at(5.5),
            "outcome": "failed",
            "usage": {"input_tokens": 2000, "output_tokens": 40},
            "error": {"message": "no luck"},
        },
        {"session_id": "r", "type": "child_ended", "child": {"session_id": "a", "title": title, "outcome": "failed"}},
    ]


def test_events_become_lines_and_nodes() -> None:
    view = TreeView("r", "root")
    lines = [line for event in family() if (line := view.fold(event)) is not None]
    assert lines == [
        "root: + child",
        "child: + grandchild",
        "child: → bash child",
        "grandchild: completed",
        "child: ! no luck",
        "child: failed in 3.5 s: no luck",
        "root: - child failed",
    ]
    assert [(lead, node.title, node.depth) for lead, node in view.rows()] == [
        ("", "root", 0),
        ("└─ ", "child", 1),
        ("   └─ ", "grandchild", 2),
    ]
    child = view.nodes["a"]
    assert (child.outcome, child.seconds, child.tokens_in, child.tokens_out) == ("failed", 3.5, 2000, 40)
    assert child.doing == ""


def test_usage_counts_while_a_turn_runs_and_the_completion_replaces_it() -> None:
    view = TreeView("r", "root")
    for event in family()[:8]:
        view.fold(event)
    child = view.nodes["a"]
    assert (child.tokens_in, child.tokens_out, child.doing, child.outcome) == (1200, 34, "bash child", None)


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"session_id": "r"},
        {"session_id": "unknown", "type": "completion", "outcome": "completed"},
        {"session_id": "r", "type": "something_new"},
        {"session_id": "r", "type": "child_ended"},
        {"session_id": "r", "type": "completion", "ts": "yesterday"},
        {"session_id": "r", "type": "tool_result"},
    ],
)
def test_events_that_say_little_or_nothing_do_no_harm(event: Json) -> None:
    view = TreeView("r", "root")
    view.fold(event)
    assert len(list(view.rows())) == 1


def test_a_session_that_is_announced_twice_is_one() -> None:
    view = TreeView("r", "root")
    for event in [*family(), *family()]:
        view.fold(event)
    assert len(view.nodes) == 3


def test_siblings_are_joined_by_lines() -> None:
    view = TreeView("r", "root")
    for parent, child in (("r", "a"), ("r", "b"), ("a", "c"), ("a", "d"), ("b", "e")):
        view.fold({"session_id": parent, "type": "child_spawned", "child": {"session_id": child, "title": child}})
    assert [lead + node.title for lead, node in view.rows()] == [
        "root", "├─ a", "│  ├─ c", "│  └─ d", "└─ b", "   └─ e",
    ]  # fmt: skip


def test_hostile_text_reaches_neither_the_terminal_nor_the_markup() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, markup=False, emoji=False, highlight=False, width=200)
    view = TreeView("r", "root")
    lines: list[str] = []
    plain = PlainTree(lines.append)
    live = LiveTree(view, console)
    for event in family(EVIL):
        line = view.fold(event)
        if line is not None:
            plain.line(line)
            live.line(line)
        live.working(EVIL)
        plain.working(EVIL)
        live._live.refresh()
    live.close()
    for shown in (written.getvalue(), "\n".join(lines)):
        assert "[bold red]x[/]" in shown
        assert "\x1b]0" not in shown
        for character in "\x07\u202e\x9b":
            assert character not in shown


def test_the_picture_has_a_line_for_each_session_with_what_it_does() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, markup=False, width=100, height=30, color_system=None)
    view = TreeView("r", "root")
    live = LiveTree(view, console)
    for event in family()[:8]:
        view.fold(event)
    live._live.refresh()
    live.close()
    [line] = {one.strip() for one in written.getvalue().splitlines() if "└─ child" in one}
    assert "running" in line
    assert "bash child" in line
    assert "1,234" in line
