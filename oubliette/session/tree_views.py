"""A tree of sessions as clients see it (SHAPES' Tree): flat, depth first, in pages that growth never shifts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

from oubliette.core.model import Json, ModelUsage, SessionRow, SessionStatus, rfc3339
from oubliette.errors import RequestError
from oubliette.session.limit_views import limits_view
from oubliette.session.status import require_session
from oubliette.store import cursors, trees
from oubliette.store.database import Tx
from oubliette.store.trees import Branch, Node

_COUNTED = ("starting", "running", "waiting", "paused", "idle", "failed")


def tree_view(
    tx: Tx, row: SessionRow, *, subtree: bool, limit: int, cursor: str | None = None, bound_to: str = ""
) -> Json:
    """A page of the tree that ``row`` is of; ``subtree``: only of what is below it, itself included.

    What is added later is on a later page or on none; nothing is on two. Counts and usage are of all that the pages
    hold, limits always of the whole tree. Raises RequestError invalid_cursor.
    """
    root = require_session(tx, row.root_id)
    branches = trees.below(tx, row.root_id, row.session_id if subtree else row.root_id)
    filters = ["tree", row.session_id if subtree else row.root_id, bound_to]
    following = branches[_after(branches, cursor, filters) :] if cursor is not None else branches
    page, next_cursor = cursors.page(following, limit, lambda branch: (branch.key,), filters)
    usage = trees.usage(tx, row.root_id)
    mine = {branch.session_id for branch in branches}
    found = trees.nodes(tx, [branch.session_id for branch in page])
    shape: Json = {
        "root_id": row.root_id,
        "project_id": row.project_id,
        "seq": root.last_seq,
        "counts": _counts(branches),
        "usage": _sum(used for one, used in usage.items() if not subtree or one in mine).as_json(),
        "limits": limits_view(tx, row.root_id, at=row if subtree else None),
        "nodes": [_node(branch, found[branch.session_id], usage.get(branch.session_id)) for branch in page],
    }
    if next_cursor is not None:
        shape["next_cursor"] = next_cursor
    return shape


def _after(branches: Sequence[Branch], cursor: str, filters: object) -> int:
    [key] = cursors.decode(cursor, filters, (int,))
    for position, branch in enumerate(branches):
        if branch.key == key:
            return position + 1
    raise RequestError(
        "invalid_cursor",
        "The session that the page before ended with is gone.",
        field="cursor",
        hint="Start again without a cursor.",
    )


def _counts(branches: Sequence[Branch]) -> Json:
    counts = dict.fromkeys(("total", "open", *_COUNTED), 0)
    for branch in branches:
        counts["total"] += 1
        counts["open"] += branch.open
        if branch.status.value in _COUNTED:
            counts[branch.status.value] += 1
    return counts


def _sum(used: Iterable[ModelUsage]) -> ModelUsage:
    return reduce(ModelUsage.plus, used, ModelUsage())


def _node(branch: Branch, node: Node, used: ModelUsage | None) -> Json:
    rests = branch.status is SessionStatus.IDLE
    ended_at = node.ended_at or (node.last_ended_at if rests else None)
    shape: Json = {
        "session_id": branch.session_id,
        "parent_id": branch.parent_id,
        "depth": branch.depth,
        "title": node.title,
        "status": branch.status.value,
        "reason": node.reason and node.reason.value,
        "turn": node.turn,
        "outcome": node.outcome and node.outcome.value,
        "workspace_id": branch.workspace_id,
        "model": node.model,
        "pending": node.pending,
        "started_at": node.started_at and rfc3339(node.started_at),
        "ended_at": ended_at and rfc3339(ended_at),
        "usage": (used or ModelUsage()).as_json(),
    }
    return {name: value for name, value in shape.items() if value is not None}
