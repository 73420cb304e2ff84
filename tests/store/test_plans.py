"""What is asked at every model request and every call does not grow with what has ended."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from oubliette.store import budgets, caller_tools, model_requests, requests, sessions
from oubliette.store.database import Store, Tx
from tests.store.rows import AT

OPEN, PENDING = "sessions_open", "requests_pending"
ASKED: list[tuple[Callable[[Any], object], str]] = [
    (partial(sessions.open_in_place, project_id="p", workspace_id="w"), OPEN),
    (partial(sessions.open_in_place, project_id="p", workspace_id=None), OPEN),
    (partial(caller_tools.caller_ids, project_id="p"), OPEN),
    (partial(caller_tools.caller_ids, project_id="p", workspace_id="w"), OPEN),
    (partial(caller_tools.in_place, project_id="p", workspace_id="w", caller_id="c"), OPEN),
    (partial(requests.pending, session_id="s"), PENDING),
    (partial(caller_tools.pending_calls, session_id="s"), PENDING),
    (partial(sessions.by_agent_id, project_id="p", workspace_id="w", agent_session_id="a"), "sessions_by_agent"),
    (partial(model_requests.tree_spent, root_id="r", counts_from=1), "COVERING INDEX model_requests_by_root"),
    (partial(model_requests.project_spent, project_id="p", since=AT), "COVERING INDEX model_requests_by_project"),
    (partial(budgets.tree_reserved, root_id="r"), "reservations_by_root"),
    (partial(budgets.project_reserved, project_id="p"), "reservations_by_project"),
]


class Explained:
    """A transaction that finds the plan of what it is asked, and sums that are nothing."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        self.plan: list[str] = []

    def rows(self, sql: str, *args: Any) -> list[tuple[Any, ...]]:
        self.plan += [row[3] for row in self._tx.rows(f"EXPLAIN QUERY PLAN {sql}", *args)]
        return [(0, 0)] if "sum(" in sql else []


@pytest.mark.parametrize(("query", "index"), ASKED)
async def test_what_is_asked_all_the_time_reads_what_is_open_and_not_what_has_ended(
    store: Store, query: Callable[[Any], object], index: str
) -> None:
    def plan(tx: Tx) -> list[str]:
        explained = Explained(tx)
        query(explained)
        return explained.plan

    found = await store.read(plan)
    assert any(index in line for line in found), found
