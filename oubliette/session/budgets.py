"""Money and tokens of a tree: what is spent, what is left, and the units that pause the tree and let it go on.

The gateway weighs each request (``gateway.metering``); what a verdict means for the sessions is decided here, in the
same unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from oubliette.core.budget import Account, Held, LimitName, microusd
from oubliette.core.model import Json, Reason, SessionRow, SessionStatus
from oubliette.core.session_state import SessionEvent
from oubliette.errors import Limit, RequestError
from oubliette.gateway.accounts import tree_accounts
from oubliette.session.status import move
from oubliette.store import budgets, model_requests, requests, sessions, turns
from oubliette.store.database import Tx

HOLD_HOURS = 24
"""How long a tree waits for its limit to be raised."""
_WORKING = frozenset({SessionStatus.RUNNING, SessionStatus.WAITING, SessionStatus.PAUSED})


@dataclass(frozen=True, slots=True)
class Spent:
    """Of a tree since its count began (its first request, or the run of a schedule): settled and set aside."""

    used_microusd: int
    reserved_microusd: int
    tokens: int
    reserved_tokens: int


def spent(tx: Tx, root_id: str) -> Spent:
    """What counts against the tree's limits at this moment."""
    used, tokens = model_requests.tree_spent(tx, root_id, budgets.get(tx, root_id).counts_from)
    reserved, reserved_tokens = budgets.tree_reserved(tx, root_id)
    return Spent(used, reserved, tokens, reserved_tokens)


def remaining(tx: Tx, root_id: str) -> dict[LimitName, Account]:
    """The tree's limits with what is on them; one that it does not have is absent."""
    return {account.name: account for account in tree_accounts(tx, root_id)}


def check_left(tx: Tx, root_id: str) -> None:
    """Raises RequestError budget_spent when nothing of the tree's money or tokens is left."""
    for account in tree_accounts(tx, root_id):
        if account.limit and account.spent:
            raise spent_error(account)


def check_child(tx: Tx, root_id: str) -> None:
    """The same for a child that is to be spawned, and also while the tree is held: it could not begin."""
    check_left(tx, root_id)
    held = budgets.get(tx, root_id).held
    if held is not None:
        raise RequestError(
            "budget_spent",
            f"The tree is paused: what is left of {held['name']} is not enough for its next request.",
            hint="Wait until it is raised, or finish with what there is.",
            retryable=True,
            limit=Limit(held["name"], held["limit"], held["used"]),
        )


def is_spent(tx: Tx, root_id: str) -> bool:
    """Whether ``check_left`` would refuse."""
    return any(account.limit and account.spent for account in tree_accounts(tx, root_id))


def spent_error(account: Account) -> RequestError:
    """The tree may start nothing more."""
    shown = account.as_json()
    what = f"{shown['used']:.4f} of {shown['limit']:g} USD" if account.name.is_money else "all its tokens"
    return RequestError(
        "budget_spent",
        f"The tree has spent {what}.",
        hint=f"Finish with what there is, or have {account.name} of its root raised (session update).",
        limit=Limit(str(account.name), shown["limit"], shown["used"]),
    )


def held_too_long() -> RequestError:
    """What ends the turns of a tree for which nobody raised the limit."""
    return RequestError(
        "budget_spent",
        f"The tree was paused for its budget, and no limit was raised in {HOLD_HOURS} hours.",
        hint="Raise it with session update, then send a message: the conversation is kept.",
    )


def begin_run(tx: Tx, root_id: str, run_budget: Json) -> None:
    """The tree counts anew from here, up to the run's own limit where it has one."""
    limit = run_budget.get("max_cost_usd")
    budgets.count_anew(tx, root_id, microusd(limit) if limit is not None else None)


# --- the pause


def hold(tx: Tx, root_id: str, held: Held, at: datetime) -> bool:
    """A request of the tree does not fit: all its sessions at work pause. Whether the tree was not held before."""
    known = budgets.get(tx, root_id).held
    why = held.as_json()
    if known != why:
        budgets.hold(tx, root_id, why, at)
    for row in sessions.subtree(tx, root_id):
        if row.status in _WORKING and row.ending is None:
            _pause(tx, row, why, at)
    return known is None


def pause_if_held(tx: Tx, row: SessionRow, at: datetime) -> SessionRow:
    """A session that begins to work in a held tree."""
    held = budgets.get(tx, row.root_id).held
    return row if held is None else _pause(tx, row, held, at)


def _pause(tx: Tx, row: SessionRow, why: Json, at: datetime) -> SessionRow:
    if paused(row):
        return row
    return move(tx, row, SessionEvent.HELD, at, Reason.BUDGET, data={"limit": why, "root_id": row.root_id})


def paused(row: SessionRow) -> bool:
    """Whether the session stands still because its tree is held."""
    return row.status is SessionStatus.PAUSED and row.reason is Reason.BUDGET


def release(tx: Tx, root_id: str, at: datetime) -> bool:
    """Nothing holds the tree any more: its sessions go on where they were. False: nothing did."""
    if budgets.get(tx, root_id).held is None:
        return False
    budgets.release(tx, root_id)
    for row in sessions.subtree(tx, root_id):
        if not paused(row) or row.ending is not None:
            continue
        row = move(tx, row, SessionEvent.RELEASED, at)
        asked = requests.pending(tx, row.session_id)
        if asked:
            move(tx, row, SessionEvent.ASKED, at, Reason(str(asked[-1].kind)))
    return True


def rest(tx: Tx, root_id: str, at: datetime) -> bool:
    """A turn of the tree is over: without another one nothing can wait for the budget."""
    if budgets.get(tx, root_id).held is None:
        return False
    at_work = (row for row in sessions.subtree(tx, root_id) if row.open)
    if any(turns.running(tx, row.session_id) is not None for row in at_work):
        return False
    return release(tx, root_id, at)
