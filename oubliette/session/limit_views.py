"""How much of its limits a tree has used (SHAPES' ``limits`` block): what its next spawn or model request meets."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from oubliette.config import Config
from oubliette.core.budget import MICROUSD, Account, LimitName
from oubliette.core.model import Json, ProjectRow, SessionRow
from oubliette.gateway.accounts import day_account
from oubliette.session import budgets
from oubliette.session.limits import AT_WORK
from oubliette.session.status import require_session
from oubliette.store import model_requests, sessions
from oubliette.store.database import Tx


def limits_view(tx: Tx, root_id: str, *, at: SessionRow | None = None) -> Json:
    """SHAPES' ``limits`` of a tree. ``at``: how deep is counted from that session, which is about to spawn; without
    it from the tree's deepest one. Money and tokens are of the count that goes on (in a schedule's session: the run).

    Raises RequestError not_found.
    """
    root = require_session(tx, root_id)
    limits = root.limits
    counts = sessions.tree_counts(tx, root_id)
    spent = budgets.spent(tx, root_id)
    accounts = budgets.remaining(tx, root_id)
    cost, tokens = accounts.get(LimitName.TREE_COST), accounts.get(LimitName.TREE_TOKENS)
    return {
        "depth": _count(limits.get("max_recursion_depth"), at.depth if at is not None else counts["max_depth"]),
        "agents": _count(limits.get("max_agents_per_session"), counts["total"]),
        "active": _count(limits.get("max_active_sessions"), sum(counts[status] for status in AT_WORK)),
        "tokens": _account(tokens) if tokens else _unlimited(spent.tokens, spent.reserved_tokens),
        "cost_usd": _account(cost) if cost else _unlimited(_usd(spent.used_microusd), _usd(spent.reserved_microusd)),
    }


def project_limits(limits: Mapping[str, float]) -> Json:
    """The same block for a tree that does not exist yet: what a new one may use."""
    names = {
        "depth": "max_recursion_depth",
        "agents": "max_agents_per_session",
        "active": "max_active_sessions",
        "tokens": "max_tokens_per_session",
        "cost_usd": "max_cost_usd",
    }
    return {name: {"limit": limits[key]} for name, key in names.items() if limits.get(key) is not None}


def cost_today(tx: Tx, config: Config, project: ProjectRow, now: datetime) -> Json:
    """What the project has spent since midnight UTC, of its limit for a day."""
    account = day_account(tx, config, project, now)
    if account is not None:
        return _account(account)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return {"used": _usd(model_requests.project_spent(tx, project.project_id, midnight))}


def _account(account: Account) -> Json:
    return {name: value for name, value in account.as_json().items() if name != "name"}


def _count(limit: float | None, used: int) -> Json:
    if limit is None:
        return {"used": used}
    return {"limit": limit, "used": used, "remaining": max(0, limit - used)}


def _unlimited(used: float, reserved: float) -> Json:
    return {"used": used, "reserved": reserved}


def _usd(microusd: int) -> float:
    return round(microusd / MICROUSD, 6)
