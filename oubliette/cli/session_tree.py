"""``session tree``: a session with all its relatives, as they stand or as they change."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from oubliette.cli.client import Daemon
from oubliette.cli.limits import limit_lines
from oubliette.cli.output import say, say_json, tokens_and_cost
from oubliette.cli.place import connect
from oubliette.cli.tree_view import Node, TreeView, open_tree_screen
from oubliette.safe_text import safe_line

Json = dict[str, Any]
PAGE = 200
_AT_WORK = frozenset({"starting", "running", "waiting", "paused"})


def tree(
    ctx: typer.Context,
    session: Annotated[str, typer.Argument(metavar="SESSION", help="Any session of it, gogol_…")],
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Show what happens, until all have ended.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs; with -f the events as JSON Lines.")] = False,
) -> None:
    """Show a session's whole tree: who there is, how each stands, what it has used."""
    daemon = connect(ctx)
    found = whole_tree(daemon, session)
    if follow_it:
        _follow(daemon, found, as_json=as_json)
    elif as_json:
        say_json(found)
    else:
        _show(found)


def whole_tree(daemon: Daemon, session: str) -> Json:
    """SHAPES' Tree with the nodes of all pages."""
    found = daemon.call("session", action="tree", session_id=session, limit=PAGE)
    nodes = list(found["nodes"])
    page = found
    while "next_cursor" in page:
        page = daemon.call("session", action="tree", session_id=session, limit=PAGE, cursor=page["next_cursor"])
        nodes += page["nodes"]
    return {name: value for name, value in found.items() if name != "next_cursor"} | {"nodes": nodes}


def _follow(daemon: Daemon, found: Json, *, as_json: bool) -> None:
    """From where the tree was read, so that nothing falls between."""
    root_id, since = str(found["root_id"]), int(found.get("seq", -1))
    if as_json:
        for received in daemon.events(root_id, since=since, children=True):
            if received.kind != "end":
                say_json(received.data)
        return
    view = view_of(found)
    screen = open_tree_screen(view)
    try:
        for received in daemon.events(root_id, since=since, children=True):
            line = view.fold(received.data)
            if line is not None:
                screen.line(line)
    finally:
        screen.close()
    _show(whole_tree(daemon, root_id))


def view_of(found: Json) -> TreeView:
    """What the events that follow are folded into."""
    nodes = found["nodes"]
    view = TreeView(str(found["root_id"]), str(nodes[0].get("title", "")) if nodes else "")
    for one in nodes:
        status = str(one.get("status", ""))
        node = Node(
            str(one["session_id"]),
            str(one.get("title", "")),
            one.get("parent_id"),
            int(one.get("depth", 0)),
            status,
            outcome=None if status in _AT_WORK else one.get("outcome"),
            started_at=_moment(one.get("started_at")),
            ended_at=_moment(one.get("ended_at")),
        )
        node.count(one.get("usage") or {})
        view.nodes[node.session_id] = node
    return view


def _show(found: Json) -> None:
    counts = found.get("counts") or {}
    said = ", ".join(f"{counts[name]} {name}" for name in ("open", *sorted(_AT_WORK), "failed") if counts.get(name))
    say(f"{found['root_id']}  {counts.get('total', 0)} sessions" + (f" ({said})" if said else ""))
    if found.get("usage"):
        say(f"  {tokens_and_cost(found['usage'])}")
    for line in limit_lines(found.get("limits") or {}):
        say(f"  {line}")
    say()
    by_id = {str(one["session_id"]): one for one in found["nodes"]}
    rows = [("SESSION", "STATUS", "LAST TURN", "TIME", "TOKENS", "USD", "TITLE")]
    rows += [_row(lead, node, by_id[node.session_id]) for lead, node in view_of(found).rows()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for *cells, title in rows:
        left = [cell.ljust(width) for cell, width in zip(cells[:3], widths[:3], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(cells[3:], widths[3:], strict=True)]
        say("  ".join([*left, *right, title]).rstrip())


def _row(lead: str, node: Node, one: Json) -> tuple[str, str, str, str, str, str, str]:
    reason = f" ({one['reason']})" if one.get("reason") else ""
    asks = f", {one['pending']} asks" if one.get("pending") else ""
    seconds = node.seconds
    return (
        lead + safe_line(node.session_id),
        safe_line(f"{node.status}{reason}{asks}"),
        safe_line(str(one.get("outcome", "-"))),
        f"{seconds:.0f} s" if seconds is not None else "-",
        f"{node.tokens_in + node.tokens_out:,}",
        f"{node.cost_usd:,.4f}",
        safe_line(node.title, 80),
    )


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
