"""What a stopped turn has heard, one snapshot for many, and an agent that is told to stop and takes its time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from oubliette.agent.base import AgentDelta, AgentDurable, AgentEvent, AgentIdle, AgentSessionSpec
from oubliette.core.model import EventType, Outcome
from oubliette.errors import AgentError, AgentUnreachable, ContainerError
from oubliette.runtime.base import ExecResult
from oubliette.session import stop_agent as stopping
from oubliette.session.deps import ReadyContainer
from oubliette.session.hearing import Hearing
from oubliette.session.snapshots import SnapshotDesk
from oubliette.session.stop_agent import stop_agent
from tests.session.fakes import FakeAgent, FakeContainer
from tests.session.world import ADMIN, open_world


def said(number: int) -> AgentDurable:
    return AgentDurable(EventType.MESSAGE, {"part": f"p{number}", "role": "assistant", "text": "x"}, f"p{number}:text")


# --- hearing


async def test_what_was_not_dealt_with_is_still_there_when_its_reader_was_stopped() -> None:
    send, receive = trio.open_memory_channel[AgentEvent](10)
    heard = Hearing(receive)
    for event in (said(1), said(2), AgentDelta("p3", "text", 0, "x"), said(3)):
        send.send_nowait(event)
    await heard.more()
    assert heard.durables == [said(1), said(2)]
    heard.done(2)
    assert heard.first == AgentDelta("p3", "text", 0, "x")
    send.send_nowait(AgentIdle(aborted=True))
    send.close()
    assert heard.rest() == [AgentDelta("p3", "text", 0, "x"), said(3), AgentIdle(aborted=True)]
    assert heard.rest() == []
    with pytest.raises(AgentError, match="without an outcome"):
        await heard.more()


async def test_what_an_agent_says_while_it_is_stopped_is_in_the_log_without_asking_it_again(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        asked: list[str] = []

        class LastWords(FakeAgent):
            async def abort(self, agent_session_id: str, directory: str) -> None:
                self._emit(agent_session_id, said(7))
                await super().abort(agent_session_id, directory)
                while agent_session_id in self.running:
                    await trio.lowlevel.checkpoint()

            async def backfill(
                self, agent_session_id: str, directory: str, message_id: str
            ) -> tuple[Sequence[AgentDurable], AgentIdle | None]:
                asked.append(agent_session_id)
                return await super().backfill(agent_session_id, directory, message_id)

        world.agent.__class__ = LastWords
        one = await world.new("sleep")
        with trio.fail_after(5):
            while "ses_1" not in world.agent._aborts:
                await trio.sleep(0.01)
        await world.tree.end(ADMIN, one, "cancelled")
        types = await world.types(one)
        assert types.count(EventType.MESSAGE) == 1
        assert types.index(EventType.MESSAGE) < types.index(EventType.COMPLETION)
        assert (await world.turn(one, 1)).outcome is Outcome.CANCELLED
        assert asked == []


# --- snapshots


@dataclass(eq=False)
class Git:
    """Counts snapshots; each takes as long as ``gate`` is closed, and says how many there were."""

    taken: int = 0
    failing: bool = False
    gate: trio.Event = field(default_factory=trio.Event)

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: bytes = b"",
        timeout_seconds: float = 120,
        max_output_bytes: int = 1 << 20,
    ) -> ExecResult:
        self.taken += 1
        number = self.taken
        await self.gate.wait()
        if self.failing:
            raise ContainerError("no")
        return ExecResult(0, b"%040d\n" % number, b"", 40, 0)


async def test_twenty_who_ask_at_once_share_two_snapshots_and_none_is_older_than_its_question() -> None:
    git = Git()
    desk = SnapshotDesk()
    got: dict[int, str] = {}

    async def ask(number: int) -> None:
        got[number] = await desk.of(cast(ReadyContainer, git)).snapshot("/workspaces/a")

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 0)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(1, 20):
                nursery.start_soon(ask, number)
            await trio.testing.wait_all_tasks_blocked()
            git.gate.set()
        assert git.taken == 2
        assert int(got[0]) == 1
        assert {int(got[number]) for number in range(1, 20)} == {2}, "the first had begun before they asked"
        await ask(20)
        assert int(got[20]) == 3, "what is over is not told again"


async def test_another_directory_or_container_has_snapshots_of_its_own() -> None:
    one, other = Git(), Git()
    one.gate.set()
    other.gate.set()
    desk = SnapshotDesk()
    for container in (one, other):
        for directory in ("/workspaces/a", "/workspaces/b"):
            await desk.of(cast(ReadyContainer, container)).snapshot(directory)
    assert (one.taken, other.taken) == (2, 2)


async def test_whoever_leaves_or_fails_takes_nobody_along() -> None:
    git = Git()
    snapshots = SnapshotDesk().of(cast(ReadyContainer, git))
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            leaves = trio.CancelScope()

            async def first() -> None:
                with leaves:
                    await snapshots.snapshot("/w")

            nursery.start_soon(first)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(snapshots.snapshot, "/w")
            await trio.testing.wait_all_tasks_blocked()
            leaves.cancel("left")
            git.gate.set()
        assert git.taken == 2
        snapshots = SnapshotDesk().of(cast(ReadyContainer, git))
        git.failing = True
        with pytest.raises(ContainerError):
            await snapshots.snapshot("/w")
        git.failing = False
        assert int(await snapshots.snapshot("/w")) == 4


# --- stopping


class Stubborn(FakeAgent):
    """Its abort takes as long as nobody kills its processes."""

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__(nursery)
        self.held = trio.Event()

    async def abort(self, agent_session_id: str, directory: str) -> None:
        await self.held.wait()
        await super().abort(agent_session_id, directory)


class Sandbox(FakeContainer):
    async def kill_session(self, mark: str) -> int:
        cast(Stubborn, self.agent).held.set()
        return await super().kill_session(mark)


async def test_processes_are_killed_though_the_agent_waits_for_them_and_once_more_when_it_has_stopped(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    agent = Stubborn(nursery)
    one = await agent.create_session(AgentSessionSpec("t", "/w"))
    began = trio.current_time()
    await stop_agent(Sandbox(agent), one, "/w", kill=True)
    assert trio.current_time() - began == pytest.approx(stopping.PATIENCE_SECONDS)
    assert agent.killed == [one, one]
    assert agent.aborted == [one]


async def test_an_interrupt_kills_only_when_the_agent_does_not_stop(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    agent = FakeAgent(nursery)
    one = await agent.create_session(AgentSessionSpec("t", "/w"))
    await stop_agent(FakeContainer(agent), one, "/w", kill=False)
    assert (agent.aborted, agent.killed) == ([one], [])
    stubborn = Stubborn(nursery)
    other = await stubborn.create_session(AgentSessionSpec("t", "/w"))
    began = trio.current_time()
    await stop_agent(Sandbox(stubborn), other, "/w", kill=False)
    assert trio.current_time() - began == pytest.approx(stopping.ABORT_SECONDS)
    assert stubborn.killed == [other]


async def test_an_agent_and_a_container_that_are_gone_are_no_error(nursery: trio.Nursery) -> None:
    class Gone(FakeAgent):
        async def abort(self, agent_session_id: str, directory: str) -> None:
            raise AgentUnreachable("gone")

    class Lost(FakeContainer):
        async def kill_session(self, mark: str) -> int:
            raise ContainerError("lost")

    with trio.fail_after(5):
        await stop_agent(Lost(Gone(nursery)), "ses_1", "/w", kill=True)
