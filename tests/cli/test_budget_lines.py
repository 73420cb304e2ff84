"""What a person reads who follows a session that is paused for its budget."""

from __future__ import annotations

from typing import Any

import pytest

from oubliette.cli.render import PlainScreen, TurnView

ROOT = "gogol_20261122_081530_1a2b3c4d"


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (
            {"name": "max_cost_usd", "limit": 10, "used": 9.98, "needed": 0.0521},
            (
                "max_cost_usd: 9.98 of 10 spent, the next request may take 0.0521; "
                f"raise it: oubliette session update {ROOT} --max-cost-usd …"
            ),
        ),
        (
            {"name": "max_tokens_per_session", "limit": 5000, "used": 4000, "needed": 2500},
            (
                "max_tokens_per_session: 4000 of 5000 spent, the next request may take 2500; "
                f"raise it: oubliette session update {ROOT} --limit max_tokens_per_session=…"
            ),
        ),
        (
            {"name": "max_cost_usd_per_day", "limit": 50, "used": 50, "needed": 1},
            "max_cost_usd_per_day: 50 of 50 spent, the next request may take 1; it goes on tomorrow, UTC",
        ),
    ],
)
def test_the_line_says_what_is_missing_and_how_to_go_on(limit: dict[str, Any], said: str) -> None:
    lines: list[str] = []
    view = TurnView(PlainScreen(lines.append))
    status = {"from": "running", "to": "paused", "reason": "budget"}
    view.show("status", {"type": "status", "status": status, "data": {"limit": limit, "root_id": ROOT}})
    assert lines == [f"· paused: budget ({said})"]
