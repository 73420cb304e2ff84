"""``demo --tree``: an agent with five children, of which one has a child of its own, one fails and one is cancelled."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import Any

from oubliette.cli.client import Daemon
from oubliette.cli.follow import tell_boot
from oubliette.cli.output import note, say, say_json
from oubliette.cli.problems import FAILED, INTERRUPTED, OK
from oubliette.cli.tree_view import Node, PlainTree, TreeScreen, TreeView, open_tree_screen
from oubliette.home import Home
from oubliette.safe_text import safe_line

Json = dict[str, Any]
ROOT = "demo"
EXPECTED = {
    ROOT: "completed",
    "primes": "completed",
    "words": "completed",
    "survey": "completed",
    "kernel": "completed",
    "broken": "failed",
    "endless": "cancelled",
}
"""How each session, by its title, is meant to end."""
CANCELLED = "endless"
"""Its parent waits for it; the demo cancels it once all the others are done."""

_TOLD = ("session_id", "parent_id", "depth", "title", "status")
"""What ``--json`` tells of each session, beside its last turn."""


def _tool(name: str, **arguments: object) -> str:
    return f"@tool {name} {json.dumps(arguments)}"


def _script(*lines: str) -> str:
    return "\n".join(lines)


_COUNT = 'n = sum(all(i % d for d in range(2, i)) for i in range(2, 1000))\nprint(f"{n} primes are below 1000")\n'
_KERNEL = _script(
    _tool("bash", command="uname -sr", description="ask the kernel"),
    "@say The kernel of the sandbox is:",
    "@echo-last-tool 80",
)
_CHILDREN = {
    "primes": _script(
        _tool("write", filePath="primes.py", content=_COUNT),
        _tool("bash", command="python3 primes.py", description="count primes"),
        "@echo-last-tool 80",
    ),
    "words": _script(
        _tool("bash", command="sleep 2; echo one two three | wc -w", description="count words"),
        "@stream 20 40",
        "@say I counted the words of a line:",
        "@echo-last-tool 80",
    ),
    "survey": _script(
        _tool("oubliette_session", action="spawn", title="kernel", message=_KERNEL),
        _tool("oubliette_session", action="wait"),
        "@say My own child says:",
        "@quote final_text",
    ),
    "broken": _script(_tool("bash", command="sleep 1", description="begin"), "@fail 400 This is part of the demo"),
    "endless": _tool("bash", command="sleep 600", description="wait for ever", timeout=600_000),
}
TASK = _script(
    "Give five tasks to five children, wait for them, and say what came of each.",
    "(The built-in model has no mind of its own: it follows these lines.)",
    "@say I will give this to five children.",
    "@tools "
    + json.dumps(
        [
            {"name": "oubliette_session", "arguments": {"action": "spawn", "title": title, "message": message}}
            for title, message in _CHILDREN.items()
        ]
    ),
    "@repeat 2",
    _tool("oubliette_session", action="wait"),
    "@say What came of my children:",
    "@quote outcome final_text error.message",
)


@dataclass(frozen=True, slots=True)
class TreeResult:
    """What the daemon says of the tree once it is over. ``sessions`` are in the order of the tree."""

    root_id: str
    sessions: list[Json]
    usage: Json
    answer: str
    problems: list[str]


def show_tree(daemon: Daemon, home: Home, project_id: str, *, as_json: bool) -> int:
    """Run the tree and show it; 0 when every session ended as it was meant to and the answer quotes the children's.

    Ctrl-C cancels the tree.
    """
    spawned = daemon.call(
        "session",
        action="spawn",
        project_id=project_id,
        message=TASK,
        title=ROOT,
        model="scripted",
        new_session=True,
        source="demo",
    )
    view = TreeView(str(spawned["session_id"]), ROOT)
    screen: TreeScreen = PlainTree(lambda _line: None) if as_json else open_tree_screen(view)
    try:
        _follow(daemon, home, spawned, view, screen)
    except KeyboardInterrupt:
        note("cancelling the tree")
        daemon.call("session", action="cancel", session_id=view.root_id)
        return INTERRUPTED
    result = _result(daemon, view)
    if as_json:
        said = {"ok": not result.problems, "root_id": result.root_id, "sessions": result.sessions}
        say_json({**said, "usage": result.usage, "answer": result.answer, "problems": result.problems})
    else:
        _tell(view, result)
    return FAILED if result.problems else OK


def _follow(daemon: Daemon, home: Home, spawned: Json, view: TreeView, screen: TreeScreen) -> None:
    """Fold the tree's events until the root's turn is over; cancel the one that has no end by itself."""
    booted = threading.Event()
    threading.Thread(target=tell_boot, args=(daemon, spawned, screen.working, booted, home), daemon=True).start()
    to_cancel: Node | None = None
    try:
        since = spawned.get("last_event_index", -1)
        for received in daemon.events(view.root_id, since=since, children=True):
            line = view.fold(received.data)
            if line is not None:
                booted.set()
                screen.working("")
                screen.line(line)
            if to_cancel is None and (to_cancel := _ripe(view)) is not None:
                daemon.call("session", action="cancel", session_id=to_cancel.session_id)
            if view.root.outcome is not None:
                return
    finally:
        booted.set()
        screen.close()


def _ripe(view: TreeView) -> Node | None:
    """The session to cancel, once it is at work and all the others are done."""
    children = view.children(view.root)
    others = [one for one in children if one.title != CANCELLED]
    endless = next((one for one in children if one.title == CANCELLED and one.doing), None)
    done = len(children) == len(_CHILDREN) and all(one.outcome is not None for one in others)
    return endless if done else None


def _result(daemon: Daemon, view: TreeView) -> TreeResult:
    """The rows of the daemon, not what was seen on the way."""
    sessions = []
    usage: Json = {}
    for _, node in view.rows():
        got = daemon.call("session", action="get", session_id=node.session_id, detail="full")
        last = got.get("last_turn") or {}
        if node is view.root:
            usage = got.get("tree_usage") or {}
        said: Json = {name: got[name] for name in _TOLD if name in got}
        said |= {"outcome": last.get("outcome", "unknown"), "seconds": round(node.seconds or 0.0, 3)}
        said |= {name: last[name] for name in ("usage", "error") if name in last}
        sessions.append(said)
    return TreeResult(view.root_id, sessions, usage, view.root.text, _problems(view, sessions))


def _problems(view: TreeView, sessions: list[Json]) -> list[str]:
    """What did not go as the demo meant it to."""
    if view.root.outcome != "completed":
        return [f"{ROOT} is {view.root.outcome}, not completed" + (f": {view.root.error}" if view.root.error else "")]
    outcomes = {str(one["title"]): str(one["outcome"]) for one in sessions}
    found = [
        f"{title} is {outcomes.get(title, 'missing')}, not {meant}"
        for title, meant in EXPECTED.items()
        if outcomes.get(title) != meant
    ]
    for child in view.children(view.root):
        said = child.text.strip().splitlines()
        if child.outcome == "completed" and (not said or said[-1] not in view.root.text):
            found.append(f"the answer does not quote {child.title}")
    return found


def _tell(view: TreeView, result: TreeResult) -> None:
    leads = {node.session_id: lead for lead, node in view.rows()}
    table = [("SESSION", "OUTCOME", "TIME", "TOKENS IN", "OUT", "USD")]
    for one in result.sessions:
        name = leads[str(one["session_id"])] + safe_line(str(one["title"]), 40)
        table.append(
            (name, safe_line(str(one["outcome"])), f"{one['seconds']:.1f} s", *_numbers(one.get("usage") or {}))
        )
    table.append(("all", "", f"{view.root.seconds or 0.0:.1f} s", *_numbers(result.usage)))
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    say()
    for name, outcome, *numbers in table:
        cells = [name.ljust(widths[0]), outcome.ljust(widths[1])]
        say("  ".join([*cells, *(cell.rjust(width) for cell, width in zip(numbers, widths[2:], strict=True))]).rstrip())
    say()
    say(result.answer)
    say()
    for problem in result.problems:
        say(f"! {problem}")
    if not result.problems:
        say("All of it went as it was meant to: one child had a child of its own, one failed, one was cancelled.")


def _numbers(usage: Json) -> tuple[str, str, str]:
    read = sum(usage.get(name, 0) for name in ("input_tokens", "cache_read_tokens", "cache_write_tokens"))
    cost = f"{usage.get('cost_usd', 0.0):,.4f}" + ("" if usage.get("cost_complete", True) else " (estimate)")
    return f"{read:,}", f"{usage.get('output_tokens', 0):,}", cost
