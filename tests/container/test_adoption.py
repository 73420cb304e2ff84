"""Starting is recovering: what a daemon finds of the one before it, whatever instruction that one was killed at."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from oubliette.container import adoption
from oubliette.container.layout import container_name, labels
from oubliette.core.model import ContainerRow, ContainerState
from oubliette.errors import EngineError
from oubliette.runtime.base import LABEL_PREFIX, ContainerInfo
from oubliette.store import containers
from tests.container.fakes import AT, INSTANCE, Box, fake, world
from tests.relay.harness import PATIENCE, alive, until

S = ContainerState


def row(state: ContainerState = S.READY, generation: int = 2, container_id: str = "c" * 32) -> ContainerRow:
    return ContainerRow(container_id, "p1", "w1", "local", generation, "cap", state, AT, spec={"fingerprint": "x"})


def info(of: ContainerRow, state: str = "running", **changed: str) -> ContainerInfo:
    told = labels(INSTANCE, of) | {LABEL_PREFIX + name: value for name, value in changed.items()}
    return ContainerInfo(container_name(INSTANCE, of.container_id), "e", state, told)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "engine", "fate"),
    [
        (S.READY, "running", "adopt"),
        (S.STARTING, "running", "adopt"),
        (S.CREATING, "running", "adopt"),
        (S.READY, "exited", "lost"),
        (S.READY, None, "lost"),
        (S.CREATING, "created", "rest"),
        (S.CREATING, None, "rest"),
        (S.STOPPED, "running", "stop"),
        (S.HIBERNATED, "running", "stop"),
        (S.LOST, "running", "stop"),
        (S.HIBERNATED, "exited", "rest"),
        (S.STOPPED, None, "rest"),
    ],
)
def test_what_row_and_engine_say_together_decides(state: ContainerState, engine: str | None, fate: str) -> None:
    mine = row(state)
    found = [] if engine is None else [info(mine, engine)]
    plan = adoption.plan(INSTANCE, [mine], found)
    assert plan.fates == {mine.container_id: fate}
    assert (plan.stale, plan.unknown) == ([], [])


@pytest.mark.parametrize(
    "changed", [{"project": "p2"}, {"workspace": "w2"}, {"instance": "other"}, {"container": "d"}, {"generation": "3"}]
)
def test_one_label_that_differs_forbids_adoption(changed: Mapping[str, str]) -> None:
    plan = adoption.plan(INSTANCE, [row()], [info(row(), **changed)])
    assert plan.fates == {"c" * 32: "lost"}
    assert len(plan.unknown) == 1
    assert plan.stale == []


def test_an_old_generation_of_ours_is_stale_and_anything_else_is_kept() -> None:
    old, newer = row(generation=1, container_id="a" * 32), row(generation=3, container_id="b" * 32)
    stranger = replace(row(container_id="d" * 32), project_id="p9")
    odd = info(row(container_id="e" * 32), generation="one")
    plan = adoption.plan(INSTANCE, [row()], [info(row()), info(old), info(newer), info(stranger), odd])
    assert plan.fates == {"c" * 32: "adopt"}
    assert plan.stale == [container_name(INSTANCE, old.container_id)]
    assert len(plan.unknown) == 3


# --- with a real relay


async def test_a_new_daemon_finds_the_same_container_and_the_same_agent(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        with trio.fail_after(PATIENCE):
            async with w.daemon() as served, served.lease("p1", "w1") as ready:
                before = await fake(ready).say("hello")
            w.codes.clear()
            async with w.daemon() as served:
                await until(lambda: w.codes == ["container_starting", "container_ready"])
                async with served.lease("p1", "w1") as ready:
                    assert await fake(ready).say("hello") == before
                    assert ready.row.generation == 1
                assert (await served.status("p1", "w1"))["relay"] == {"connected": True, "version": "1"}
        assert w.runtime.calls.count("start") == 1
        assert len(w.launcher.passwords) == 1


async def test_an_agent_that_died_meanwhile_is_replaced(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        with trio.fail_after(PATIENCE):
            async with w.daemon() as served, served.lease("p1", "w1") as ready:
                pid, _ = await fake(ready).say("hello")
            os.kill(pid, signal.SIGKILL)
            await until(lambda: not alive(pid))
            async with w.daemon() as served, served.lease("p1", "w1") as ready:
                assert (await fake(ready).say("hello"))[0] != pid
        assert w.runtime.calls.count("start") == 1


async def test_a_container_that_ended_meanwhile_is_lost_and_made_again(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        with trio.fail_after(PATIENCE):
            async with w.daemon() as served:
                await served.start("p1", "w1")
            w.runtime.end_all()
            async with w.daemon() as served:
                assert w.codes[-1] == "container_lost"
                status = await served.status("p1", "w1")
                assert status["state"] == "lost"
                assert "ended with code 0 while the daemon was not running" in status["error"]["message"]
                async with served.lease("p1", "w1") as ready:
                    assert ready.row.generation == 2
        assert len(w.runtime.boxes) == 1


async def test_one_that_should_sleep_is_put_to_sleep_again(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        with trio.fail_after(PATIENCE):
            async with w.daemon() as served:
                await served.start("p1", "w1")
            container_id = (await w.row()).container_id
            await w.store.write(partial(containers.update, container_id=container_id, state=S.HIBERNATED))
            async with w.daemon() as served:
                await until(lambda: not w.runtime.running())
                assert (await w.row()).state is S.HIBERNATED
                async with served.lease("p1", "w1") as ready:
                    assert ready.row.container_id == container_id


async def test_old_generations_go_and_what_nobody_can_explain_stays(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        with trio.fail_after(PATIENCE):
            async with w.daemon() as served:
                await served.start("p1", "w1", recreate=True)
            ours = await w.row()
            spec = w.runtime.boxes[container_name(INSTANCE, ours.container_id)].spec
            strange = {
                "old": labels(INSTANCE, replace(ours, container_id="a" * 32, generation=0)),
                "newer": labels(INSTANCE, replace(ours, container_id="b" * 32, generation=9)),
                "elsewhere": labels(INSTANCE, replace(ours, project_id="p9", container_id="e" * 32)),
                "another daemon's": labels("fedcba98", ours),
            }
            for name, told in strange.items():
                w.runtime.boxes[name] = Box(replace(spec, name=name, labels=told))
            async with w.daemon() as served:
                await until(lambda: "old" not in w.runtime.boxes)
                async with served.lease("p1", "w1") as ready:
                    assert ready.row.container_id == ours.container_id
            assert {"newer", "elsewhere", "another daemon's"} < set(w.runtime.boxes)


async def test_an_engine_that_does_not_answer_does_not_stop_the_start(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        with trio.fail_after(PATIENCE):
            async with w.daemon() as served:
                await served.start("p1", "w1")
            w.runtime.fail["list"] = EngineError("the engine is being restarted")
            async with w.daemon() as served, served.lease("p1", "w1") as ready:
                await fake(ready).say("found all the same, by its name")
        assert w.runtime.calls.count("start") == 1


async def test_a_container_of_another_runtime_is_not_doubled(tmp_path: Path) -> None:
    """Its writable directories may still be mounted there: it is given up only when somebody says so."""
    async with world(tmp_path) as w:
        with trio.fail_after(PATIENCE):
            async with w.daemon() as served:
                await served.start("p1", "w1")
            container_id = (await w.row()).container_id
            await w.store.write(partial(containers.update, container_id=container_id, runtime="docker"))
            async with w.daemon() as served:
                for attempt in (served.start, served.stop):
                    with pytest.raises(Exception, match="was made with docker"):
                        await attempt("p1", "w1")
                w.runtime.end_all()
                await served.stop("p1", "w1", force=True)
                await served.start("p1", "w1")
                assert (await w.row()).generation == 2
