"""Hostile insides at the agents' door: streams that never read, that take back what they ask, that flood."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette.api import agents as agents_module
from oubliette.api import line_stream
from oubliette.core.model import EventType, NewEvent
from oubliette.store import events
from oubliette.store.database import Tx
from tests.api.agent_world import CONTAINER, OTHER_CONTAINER, OTHER_WORKSPACE, Agents, Wire, calling, open_agents

STREAMS = 64
LINES = 60
GROWTH_BYTES = 200 << 20
PATIENCE = 120


@asynccontextmanager
async def socket_wire(agents: Agents, container: str = CONTAINER) -> AsyncIterator[Wire]:
    """A stream with the kernel's buffers and no others, as a container's really is."""
    ours, theirs = (trio.SocketStream(one) for one in trio.socket.socketpair())
    agents.nursery.start_soon(agents.serve, theirs, container, "")
    try:
        yield Wire(ours)
    finally:
        await trio.aclose_forcefully(ours)


async def fat_log(agents: Agents, session_id: str) -> None:
    """Ten events of 200 kB each."""

    def unit(tx: Tx) -> None:
        for number in range(10):
            body = {"part": f"prt_{number}", "role": "assistant", "text": f"{number}" * 200_000}
            events.append(tx, session_id, NewEvent(EventType.MESSAGE, 1, body, source=f"fat {number}"))

    await agents.doors.world.store.write(unit)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def pour(wire: Wire, stamp: str, session_id: str, *, take_back: bool) -> None:
    """Ask for the whole log again and again, and read nothing: 3,840 times 2 MB, were all of it answered."""
    try:
        for number in range(LINES):
            asked = {"action": "events", "session_id": session_id, "max_events": 1000, "max_chars": 1_000_000}
            await wire.say(calling(number, stamp, **asked))
            if take_back:
                await wire.say({"method": "notifications/cancelled", "params": {"requestId": number}})
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return


@pytest.mark.parametrize("take_back", [False, True])
async def test_streams_that_never_read_are_not_read_and_cost_little(tmp_path: Path, take_back: bool) -> None:
    async with open_agents(tmp_path) as agents:
        session_id, stamp = await agents.session()
        _, near = await agents.session(workspace_id=OTHER_WORKSPACE)
        await fat_log(agents, session_id)
        before = most = resident_bytes()
        slowest = 0.0
        async with socket_wire(agents, OTHER_CONTAINER) as honest, trio.open_nursery() as nursery:
            await honest.result(near, action="list")
            for _ in range(STREAMS):
                wire = await _entered(nursery, agents)
                nursery.start_soon(partial(pour, wire, stamp, session_id, take_back=take_back))
            with trio.fail_after(PATIENCE):
                for _ in range(6):
                    began = trio.current_time()
                    await honest.result(near, action="list")
                    slowest = max(slowest, trio.current_time() - began)
                    most = max(most, resident_bytes())
                    await trio.sleep(0.1)
            nursery.cancel_scope.cancel("seen enough")
        assert most - before < GROWTH_BYTES
        assert slowest < 20
        await agents.no_calls()
        async with socket_wire(agents) as wire:
            assert (await wire.result(stamp, action="list"))["sessions"], "later calls of the container work"


async def _entered(nursery: trio.Nursery, agents: Agents) -> Wire:
    async def hold(task_status: trio.TaskStatus[Wire]) -> None:
        async with socket_wire(agents) as wire:
            task_status.started(wire)
            await trio.sleep_forever()

    wire: Wire = await nursery.start(hold)
    return wire


async def test_calls_are_counted_over_all_streams_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_stream, "OPEN_CALLS", 3)
    async with open_agents(tmp_path) as agents, agents.wire() as one, agents.wire() as two:
        _, stamp = await agents.session()
        _, near = await agents.session(workspace_id=OTHER_WORKSPACE)
        await one.result(stamp, action="spawn", message="sleep")
        for number, wire in enumerate((one, two, one)):
            await wire.say(calling(50 + number, stamp, action="wait", wait_seconds=40))
        await two.say(calling(59, stamp, action="list"))
        with trio.move_on_after(0.3) as patience:
            await two.hear()
        assert patience.cancelled_caught, "it waits for one of the others"
        async with agents.wire(OTHER_CONTAINER) as wire:
            assert await wire.result(near, action="list"), "another container does not"
        await one.say({"method": "notifications/cancelled", "params": {"requestId": 52}})
        assert (await two.hear())["id"] == 59
        await trio.aclose_forcefully(one.stream)
        assert await two.result(stamp, action="list")
    assert not agents.door._calls


async def test_an_agent_gets_no_answer_longer_than_agents_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents_module, "ANSWER_CHARACTERS", 5_000)
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        session_id, stamp = await agents.session()
        await fat_log(agents, session_id)
        for asked in (1_000_000, "1000000"):
            failed, text = await wire.call("session", stamp, action="events", session_id=session_id, max_chars=asked)
            assert not failed, text[:200]
            assert len(text) <= 5_000
            assert json.loads(text)["events"]


async def test_answers_and_notices_that_nobody_asked_for_are_ignored(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        _, stamp = await agents.session()
        nonsense: list[dict[str, Any]] = [
            {"id": 1, "result": {"tools": []}},
            {"id": "x", "error": {"code": 1, "message": "no"}},
            {"method": "notifications/cancelled", "params": {"requestId": 1}},
            {"method": "notifications/cancelled", "params": {"requestId": ["x"]}},
            {"method": "notifications/cancelled"},
            {"method": "notifications/progress", "params": {"progressToken": "p", "progress": 1}},
            {"method": "notifications/nonsense"},
        ]
        for message in nonsense * 20:
            await wire.say(message)
        assert (await wire.result(stamp, action="list"))["sessions"]


async def test_a_thousand_streams_one_after_the_other_leave_nothing(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents:
        _, stamp = await agents.session()
        for number in range(1000):
            async with agents.wire() as wire:
                if number % 3:
                    await wire.say(calling(1, stamp, action="list"))
        await agents.no_calls()
        with trio.fail_after(10):
            while agents.door._streams or agents.door._calls:
                await trio.sleep(0.01)
