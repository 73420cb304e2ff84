"""How long an agent's call may take: no longer than its client is patient."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from oubliette.api.tools import progress
from oubliette.api.tools.registry import Call
from oubliette.core.limits import MAX_WAIT_SECONDS, MAX_WAIT_WITH_PROGRESS_SECONDS, PROGRESS_SECONDS
from oubliette.core.principals import LOCAL
from oubliette.launcher import OWN_SERVER_TIMEOUT_MS
from tests.api.agent_world import calling, open_agents

SILENT: Any = Call(None, LOCAL, "r")  # type: ignore[arg-type]
AGENTS_PATIENCE_SECONDS = 60
"""OpenCode gives a silent call up after so long, where nothing else is said."""


async def tell(done: float, total: float | None, what: str) -> None:
    await trio.lowlevel.checkpoint()


@given(st.floats(0, 1e6))
def test_no_call_waits_longer_than_45_seconds_unless_its_client_is_told_that_it_goes_on(asked: float) -> None:
    assert progress.patience(SILENT, asked) <= MAX_WAIT_SECONDS == 45
    assert progress.patience(replace(SILENT, progress=tell), asked) <= MAX_WAIT_WITH_PROGRESS_SECONDS == 240
    assert progress.patience(SILENT, asked) <= asked


def test_the_agents_own_time_limits_are_longer_than_ours() -> None:
    assert MAX_WAIT_SECONDS < AGENTS_PATIENCE_SECONDS
    assert PROGRESS_SECONDS * 3 < AGENTS_PATIENCE_SECONDS, "two notices may be lost"
    assert MAX_WAIT_WITH_PROGRESS_SECONDS * 1000 < OWN_SERVER_TIMEOUT_MS


@pytest.mark.parametrize("action", ["wait", "events"])
async def test_a_call_without_a_progress_token_is_answered_in_time_whatever_it_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    monkeypatch.setattr(progress, "MAX_WAIT_SECONDS", 0.4)
    monkeypatch.setattr(progress, "PROGRESS_SECONDS", 0.1)
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        mine, stamp = await agents.session()
        child = await wire.result(stamp, action="spawn", message="sleep")
        await agents.at_work(child["session_id"])
        asked: dict[str, Any] = {"action": action, "wait_seconds": 240}
        if action == "events":
            newest = await wire.result(stamp, action="get", session_id=mine)
            asked = {**asked, "session_id": mine, "since_index": newest["last_index"]}
        began = trio.current_time()
        await wire.say(calling(70, stamp, **asked))
        answer = await wire.hear()
        assert answer["id"] == 70, "no notice goes to who has not asked for it"
        assert trio.current_time() - began < 5
        assert not answer["result"].get("isError")
        told = calling(71, stamp, **{**asked, "wait_seconds": 1})
        told["params"]["_meta"] = {"progressToken": "p"}
        began = trio.current_time()
        await wire.say(told)
        notices = 0
        while "id" not in (answer := await wire.hear()):
            assert answer["params"]["progressToken"] == "p"
            notices += 1
        assert notices >= 2
        assert trio.current_time() - began > 0.9
        assert json.loads(answer["result"]["content"][0]["text"])
