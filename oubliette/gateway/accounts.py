"""What a tree's next model request is weighed against: its limits, what it has spent, what is set aside."""

from __future__ import annotations

from datetime import datetime

from oubliette.config import Config
from oubliette.core.budget import Account, LimitName, microusd
from oubliette.core.model import ProjectRow
from oubliette.store import budgets, model_requests, projects, sessions
from oubliette.store.database import Tx


def tree_accounts(tx: Tx, root_id: str) -> list[Account]:
    """The tree's own: money and tokens, since its count began. A limit that it does not have is absent."""
    root = sessions.get(tx, root_id)
    if root is None:
        return []
    budget = budgets.get(tx, root_id)
    used_microusd, used_tokens = model_requests.tree_spent(tx, root_id, budget.counts_from)
    reserved_microusd, reserved_tokens = budgets.tree_reserved(tx, root_id)
    found = []
    limit = budget.run_limit_microusd
    if limit is None and root.limits.get("max_cost_usd") is not None:
        limit = microusd(root.limits["max_cost_usd"])
    if limit is not None:
        found.append(Account(LimitName.TREE_COST, limit, used_microusd, reserved_microusd))
    tokens = root.limits.get("max_tokens_per_session")
    if tokens is not None:
        found.append(Account(LimitName.TREE_TOKENS, int(tokens), used_tokens, reserved_tokens))
    return found


def day_account(tx: Tx, config: Config, project: ProjectRow, at: datetime) -> Account | None:
    """The project's money of this day (UTC). None: it has no such limit."""
    own = (project.settings.get("limits") or {}).get("max_cost_usd_per_day")
    limit = own if own is not None else config.defaults.limits.max_cost_usd_per_day
    if limit is None:
        return None
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    return Account(
        LimitName.DAY_COST,
        microusd(limit),
        model_requests.project_spent(tx, project.project_id, midnight),
        budgets.project_reserved(tx, project.project_id),
    )


def accounts(tx: Tx, config: Config, root_id: str, project_id: str, at: datetime) -> list[Account]:
    """All that a request of that tree has to fit in. ``at`` is aware, UTC."""
    found = tree_accounts(tx, root_id)
    project = projects.get(tx, project_id)
    day = day_account(tx, config, project, at) if project is not None else None
    return [*found, *([day] if day is not None else [])]
