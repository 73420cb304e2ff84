"""What the ``session`` tool only looks at: one session, a list of them, a tree of them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from oubliette.api.tools.fields import invalid, shown
from oubliette.api.tools.registry import Call
from oubliette.core.model import Json, SessionRow, SessionStatus
from oubliette.safe_text import safe_line
from oubliette.session import views
from oubliette.session.tree_views import tree_view
from oubliette.store import sessions
from oubliette.store.database import Tx

if TYPE_CHECKING:
    from oubliette.api.tools.session import Get, List, Tree

_BRIEF: Final = (
    "session_id",
    "project_id",
    "workspace_id",
    "parent_id",
    "depth",
    "title",
    "external_id",
    "source",
    "status",
    "reason",
    "since",
    "open",
    "model",
    "turn",
    "queued",
    "last_index",
)
_MAX_ANSWERS: Final = 50


def as_answers(given: dict[str, Any]) -> dict[str, list[str]]:
    """Question id to chosen options; one option may come without its list."""
    found: dict[str, list[str]] = {}
    for question, chosen in given.items():
        values = [chosen] if isinstance(chosen, str) else chosen
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise invalid("answers", f"to {shown(question)} must be an array of strings")
        found[question] = values
    if not 0 < len(found) <= _MAX_ANSWERS:
        raise invalid("answers", "must name a question and what was chosen")
    return found


async def get(call: Call, args: Get) -> Json:
    row = call.place.session
    return await call.shared.services.store.read(partial(_fresh_view, row=row, full=args.detail == "full"))


def _fresh_view(tx: Tx, row: SessionRow, full: bool) -> Json:
    return views.session_view(tx, sessions.get(tx, row.session_id) or row, full=full)


async def list_sessions(call: Call, args: List) -> Json:
    return await call.shared.services.store.read(partial(_list, call=call, args=args))


def _list(tx: Tx, call: Call, args: List) -> Json:
    own = call.principal.scope.session_id
    status: Literal["open"] | list[SessionStatus] | None = None
    if args.status is not None:
        status = "open" if args.status == "open" else [SessionStatus(args.status)]
    rows, following = sessions.list_page(
        tx,
        project_id=call.place.project_id,
        workspace_id=args.workspace_id,
        status=status,
        root_id=args.root_id,
        parent_id=args.parent_id,
        external_id=args.external_id,
        source=args.source,
        below=own,
        limit=args.limit,
        cursor=args.cursor,
        bound_to=call.principal.id,
    )
    full = args.detail == "full"
    page: Json = {"sessions": [_item(views.session_view(tx, row), full) for row in rows]}
    if following is not None:
        page["next_cursor"] = following
    return page


def _item(view: Json, full: bool) -> Json:
    """A list's brief item: where it is, how it stands, how its last turn ended."""
    if full:
        return view
    item: Json = {name: view[name] for name in _BRIEF if name in view}
    item["title"] = safe_line(str(item.get("title", "")), 120)
    if view["pending"]:
        item["pending"] = view["pending"]
    last = view.get("last_turn")
    if last is not None:
        item["last_turn"] = {name: last[name] for name in ("turn", "status", "outcome", "error") if name in last}
    return item


async def tree(call: Call, args: Tree) -> Json:
    """A token sees the whole tree that the session is of; an agent what is below it."""
    return await call.shared.services.store.read(
        partial(
            tree_view,
            row=call.place.session,
            subtree=call.principal.scope.session_id is not None,
            limit=args.limit,
            cursor=args.cursor,
            bound_to=call.principal.id,
        )
    )
