"""The limits of a tree, checked in the units that spawn and wake: exact, because those are the only ways in."""

from __future__ import annotations

from collections.abc import Mapping

from oubliette.core.limits import MAX_OPEN_SESSIONS
from oubliette.core.model import Json, SessionRow
from oubliette.errors import Limit, RequestError
from oubliette.store import sessions
from oubliette.store.database import Tx

AT_WORK = ("starting", "running", "waiting", "paused")


def check_room(tx: Tx) -> None:
    """Raises RequestError limit_reached when the daemon holds as many open sessions as it may."""
    used = sessions.open_count(tx)
    if used >= MAX_OPEN_SESSIONS:
        raise RequestError(
            "limit_reached",
            f"{MAX_OPEN_SESSIONS} sessions are open, which is all this daemon holds.",
            hint="End some with session end.",
            limit=Limit("open_sessions", MAX_OPEN_SESSIONS, used),
        )


def check_tree(tx: Tx, parent: SessionRow) -> None:
    """Raises RequestError limit_reached when a child of ``parent`` would be too deep or one too many in its tree."""
    root = parent if parent.depth == 0 else sessions.get(tx, parent.root_id)
    limits: Json = root.limits if root is not None else parent.limits
    depth = parent.depth + 1
    deepest = limits.get("max_recursion_depth")
    if deepest is not None and depth > deepest:
        raise RequestError(
            "limit_reached",
            f"The tree may be {deepest} levels deep; this child would be on level {depth}.",
            hint="Do the work here, or give it to an existing session.",
            limit=Limit("max_recursion_depth", deepest, parent.depth),
        )
    counts = sessions.tree_counts(tx, parent.root_id)
    agents = limits.get("max_agents_per_session")
    if agents is not None and counts["total"] >= agents:
        raise RequestError(
            "limit_reached",
            f"The tree may hold {agents} agents; {counts['total']} exist.",
            hint="Message an existing child instead, or ask for a higher max_agents_per_session.",
            limit=Limit("max_agents_per_session", agents, counts["total"]),
        )
    _check_active(limits, counts)


def check_wake(tx: Tx, row: SessionRow) -> None:
    """Raises RequestError limit_reached when a message would put one session of the tree too many to work.

    A session that is at work already takes the message into its queue: it counts once.
    """
    if row.status not in AT_WORK:
        root = row if row.depth == 0 else sessions.get(tx, row.root_id)
        limits = root.limits if root is not None else row.limits
        _check_active(limits, sessions.tree_counts(tx, row.root_id))


def may_wake(tx: Tx, row: SessionRow) -> bool:
    """Whether ``check_wake`` lets it."""
    try:
        check_wake(tx, row)
    except RequestError:
        return False
    return True


def _check_active(limits: Json, counts: Mapping[str, int]) -> None:
    active = limits.get("max_active_sessions")
    working = sum(counts[status] for status in AT_WORK)
    if active is not None and working >= active:
        raise RequestError(
            "limit_reached",
            f"{active} sessions of the tree may be at work at once; {working} are.",
            hint="Wait for some with session wait.",
            retryable=True,
            limit=Limit("max_active_sessions", active, working),
        )
