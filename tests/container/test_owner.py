"""The life of a container: started once for all who wait, watched, replaced, put to sleep, found again."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from oubliette.container import deps
from oubliette.container.layout import Place, run_dir
from oubliette.container.owner import Owner
from oubliette.container.ready import ReadyContainer
from oubliette.container.registry import Containers
from oubliette.core.model import ContainerState, PlaceState
from oubliette.errors import (
    AgentUnreachable,
    ContainerError,
    ContainerExited,
    ImageMissing,
    RequestError,
)
from oubliette.store import workspaces
from tests.container.fakes import QUICK, fake, world
from tests.relay.harness import PATIENCE, alive, pid_from, until


async def test_a_lease_starts_the_container_and_the_agent_and_everything_works(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        with trio.fail_after(PATIENCE):
            async with served.lease("p1", "w1") as ready:
                pid, _ = await fake(ready).say("hello")
                assert alive(pid)
                assert ready.directory("w1") == "/workspaces/w1"
                with pytest.raises(RequestError, match="not in this container"):
                    ready.directory("w2")
                result = await ready.exec(["sh", "-c", "echo $HOME $A"], env={"A": "b"}, cwd="/")
                assert result.stdout == b"/tmp/home b\n"
                await ready.put_file("stamped.json", b"[]")
                inside = run_dir(w.home, ready.row.container_id)
                assert (inside / "stamped.json").read_bytes() == b"[]"
                assert (inside / "agent.json").read_text() == f"shop {ready.row.capability}"
                await until(lambda: fake(ready).warmed == ["/workspaces/w1"])
        row = await w.row()
        assert (row.state, row.generation, row.runtime, row.workspace_id) == (ContainerState.READY, 1, "local", "w1")
        assert row.image == "oubliette-base:0.1@sha256:0"
        assert w.codes == ["container_starting", "container_ready"]


async def test_many_wait_for_one_start(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        seen: set[int] = set()

        async def use() -> None:
            async with served.lease("p1", "w1") as ready:
                seen.add((await fake(ready).say("hello"))[0])

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for _ in range(30):
                    nursery.start_soon(use)
        assert len(seen) == 1
        assert w.runtime.calls.count("start") == 1


async def test_who_leaves_during_the_start_cancels_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        go = w.runtime.hold["start"] = trio.Event()
        reached = w.runtime.seen["start"] = trio.Event()
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:

                async def use() -> None:
                    async with served.lease("p1", "w1"):
                        raise AssertionError("it cannot be ready")

                nursery.start_soon(use)
                await reached.wait()
                nursery.cancel_scope.cancel("the caller has gone")
            go.set()
            async with served.lease("p1", "w1"):
                pass
        assert w.runtime.calls.count("start") == 1
        assert w.codes == ["container_starting", "container_ready"]


async def test_workspaces_have_containers_of_their_own(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        with trio.fail_after(PATIENCE):
            async with served.lease("p1", "w1") as one, served.lease("p1", "w2") as two:
                assert one.row.container_id != two.row.container_id
                assert one.row.capability != two.row.capability
                assert (await fake(one).say("x"))[0] != (await fake(two).say("x"))[0]
        assert len(w.runtime.running()) == 2


async def test_only_so_many_are_started_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deps, "STARTS_AT_ONCE", 1)
    async with world(tmp_path) as w, w.daemon() as served:
        go = w.runtime.hold["start"] = trio.Event()
        reached = w.runtime.seen["start"] = trio.Event()

        async def use(workspace_id: str) -> None:
            async with served.lease("p1", workspace_id):
                pass

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(use, "w1")
                nursery.start_soon(use, "w2")
                await reached.wait()
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert w.runtime.calls.count("create") == 1
                go.set()
        assert len(w.runtime.running()) == 2


async def test_without_isolation_all_workspaces_share_one_container(tmp_path: Path) -> None:
    async with world(tmp_path, workspace_isolation=False) as w, w.daemon() as served:
        with trio.fail_after(PATIENCE):
            async with served.lease("p1", "w1") as one, served.lease("p1", "w2") as two:
                assert one is two
                assert (one.directory("w1"), one.directory("w2")) == ("/workspaces/w1", "/workspaces/w2")
            await served.remove("p1", "w2")
            assert len(w.runtime.running()) == 1, "a workspace that goes does not take the others' container"
            await served.remove("p1", None)
        assert (w.runtime.boxes, await w.rows()) == ({}, [])


async def test_a_start_that_fails_is_everybodys_error_and_the_next_one_starts_anew(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        w.runtime.fail["ensure_image"] = ImageMissing("no such image", hint="pull it")
        go = w.runtime.hold["ensure_image"] = trio.Event()
        reached = w.runtime.seen["ensure_image"] = trio.Event()
        failed: list[str] = []

        async def use() -> None:
            with pytest.raises(ImageMissing) as caught:
                async with served.lease("p1", "w1"):
                    pass
            failed.append(str(caught.value))

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(use)
                nursery.start_soon(use)
                await reached.wait()
                status = await served.status("p1", "w1")
                assert (status["state"], status["progress"]["total"]) == ("pulling", 2)
                go.set()
            assert failed == ["no such image"] * 2
            status = await served.status("p1", "w1")
            assert (status["state"], status["error"]["message"]) == ("failed", "no such image")
            async with served.lease("p1", "w1") as ready:
                assert ready.row.generation == 2
        assert (await w.row()).error is None


async def test_a_container_that_ends_at_once_says_its_last_words(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        w.runtime.relay_argv = ["sh", "-c", "echo no python here >&2; exit 127"]
        with trio.fail_after(PATIENCE):
            with pytest.raises(ContainerExited, match="ended with code 127") as caught:
                await served.start("p1", "w1")
        assert "no python here" in caught.value.hint
        assert b"no python here" in await served.logs("p1", "w1")
        assert (await w.row()).state is ContainerState.LOST


async def test_a_relay_that_never_dials_is_a_failure_and_nothing_is_left_running(tmp_path: Path) -> None:
    async with world(tmp_path, tuning=replace(QUICK, relay_start=0.3)) as w, w.daemon() as served:
        w.runtime.relay_argv = ["sleep", "600"]
        with trio.fail_after(PATIENCE):
            with pytest.raises(ContainerError, match="did not dial"):
                await served.start("p1", "w1")
            await until(lambda: not w.runtime.running())
        assert (await w.row()).state is ContainerState.FAILED


async def test_a_lost_container_is_said_and_made_again_by_the_next_lease(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        with trio.fail_after(PATIENCE):
            async with served.lease("p1", "w1") as ready:
                os.kill(w.runtime.pid(), signal.SIGKILL)
                await ready.lost.wait()
                with pytest.raises(AgentUnreachable):
                    _ = ready.agent
                with pytest.raises(ContainerError):
                    await ready.exec(["true"])
            await until(lambda: w.codes[-1] == "container_lost")
            status = await served.status("p1", "w1")
            assert (status["state"], status["error"]["code"]) == ("lost", "unavailable")
            async with served.lease("p1", "w1") as again:
                assert again.row.generation == 2
                assert again.row.container_id != ready.row.container_id
        assert len(w.runtime.boxes) == 1
        assert not run_dir(w.home, ready.row.container_id).exists()
        assert w.codes[3:] == ["container_starting", "container_ready"]


async def test_a_relay_that_hangs_is_lost_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oubliette_relay.protocol.SILENCE_SECONDS", 3.0)
    async with world(tmp_path, tuning=replace(QUICK, relay_gone=0.3, stop_grace=0.2)) as w, w.daemon() as served:
        with trio.fail_after(PATIENCE):
            async with served.lease("p1", "w1") as ready:
                os.kill(w.runtime.pid(), signal.SIGSTOP)
                await ready.lost.wait()
            await until(lambda: not w.runtime.running())
            await served.start("p1", "w1")


async def test_an_agent_that_is_killed_is_replaced_after_its_tools_are_gone(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        with trio.fail_after(PATIENCE):
            async with served.lease("p1", "w1") as ready:
                first = fake(ready)
                pid, password = await first.say(f"tool {tmp_path}/tool")
                tool = await pid_from(tmp_path / "tool")
                await first.die(pid)
                async with served.lease("p1", "w1") as again:
                    assert again is ready
                    assert first.lost
                    assert not alive(tool)
                    new_pid, new_password = await fake(ready).say("hello")
                    assert new_pid != pid
                    assert new_password != password
        assert w.codes[-1] == "agent_restarted"
        assert (await w.row()).agent["restarts"] == 1
        assert w.runtime.calls.count("start") == 1


async def test_an_agent_that_hangs_is_ended_and_replaced(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        with trio.fail_after(PATIENCE):
            async with served.lease("p1", "w1") as ready:
                pid, _ = await fake(ready).say("hello")
                os.kill(pid, signal.SIGSTOP)
                fake(ready).hung.set()
                await until(lambda: not alive(pid))
                async with served.lease("p1", "w1") as again:
                    assert (await fake(again).say("hello"))[0] != pid
        assert w.codes[-1] == "agent_restarted"


async def test_an_agent_that_keeps_ending_is_given_up_with_its_last_words(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        w.launcher.script = ["sh", "-c", "echo bad config >&2; exit 1"]
        with trio.fail_after(PATIENCE):
            with pytest.raises(AgentUnreachable, match="ended 4 times in a row: it ended with code 1: bad config"):
                await served.start("p1", "w1")
            await until(lambda: not w.runtime.running())
            assert (await w.row()).state is ContainerState.FAILED
            w.launcher.script = None
            await served.start("p1", "w1")


async def test_an_idle_agent_that_has_grown_is_restarted_and_a_used_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        with trio.fail_after(PATIENCE):
            async with served.lease("p1", "w1") as ready:
                pid, _ = await fake(ready).say("grow")
                await until(lambda: (ready.link.memory_bytes("agent") or 0) > 64 << 20)
                await trio.sleep(3 * QUICK.memory_look)
                assert alive(pid)
            await until(lambda: not alive(pid))
            async with served.lease("p1", "w1") as ready:
                assert (await fake(ready).say("hello"))[0] != pid
        assert "agent_restarted" in w.codes


async def test_it_hibernates_when_nobody_uses_it_and_the_next_lease_wakes_the_same_one(tmp_path: Path) -> None:
    async with world(tmp_path, tuning=replace(QUICK, hibernate=0.2)) as w, w.daemon() as served:
        with trio.fail_after(PATIENCE):
            async with served.lease("p1", "w1") as ready:
                await trio.sleep(0.5)
                assert not ready.lost.is_set(), "a lease keeps it awake"
            await ready.lost.wait()
            await until(lambda: "hibernated" in w.codes)
            assert not w.runtime.running()
            assert (await served.status("p1", "w1"))["state"] == "hibernated"
            async with served.lease("p1", "w1") as again:
                assert again.row.container_id == ready.row.container_id
                assert again.row.generation == 1
                assert w.codes[-1] == "woken"


async def test_leases_while_it_falls_asleep_are_served_by_the_next_life(tmp_path: Path) -> None:
    async with world(tmp_path, tuning=replace(QUICK, hibernate=0.0)) as w, w.daemon() as served:
        with trio.fail_after(60):
            for _ in range(15):
                async with served.lease("p1", "w1") as ready:
                    await fake(ready).say("hello")
    assert w.codes.count("container_lost") == 0


async def test_stop_start_and_recreate(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        with trio.fail_after(PATIENCE):
            await served.stop("p1", "w1")
            assert (await served.status("p1", "w1"))["state"] == "absent"
            await served.start("p1", "w1")
            first = await w.row()
            await served.start("p1", "w1")
            assert w.runtime.calls.count("start") == 1, "starting what runs is fine"
            await served.stop("p1", "w1")
            assert not w.runtime.running()
            assert (await served.status("p1", "w1"))["state"] == "stopped"
            await served.start("p1", "w1")
            assert (await w.row()).container_id == first.container_id
            await served.start("p1", "w1", recreate=True)
            second = await w.row()
            assert (second.generation, len(w.runtime.boxes)) == (2, 1)
            assert second.container_id != first.container_id


async def test_stopping_what_is_being_started_ends_the_start(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        w.runtime.hold["create"] = trio.Event()
        reached = w.runtime.seen["create"] = trio.Event()

        async def use() -> None:
            with pytest.raises(ContainerExited, match="was stopped"):
                await served.start("p1", "w1")

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(use)
                await reached.wait()
                await served.stop("p1", "w1")
            del w.runtime.hold["create"]
            await served.start("p1", "w1")
        assert len(w.runtime.boxes) == 1


async def test_removing_leaves_nothing_and_refuses_who_waits(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        with trio.fail_after(PATIENCE):
            async with served.lease("p1", "w1") as ready:
                await served.remove("p1", "w1")
                assert ready.lost.is_set()
            assert (w.runtime.boxes, await w.rows()) == ({}, [])
            assert list((w.home.run / "c").iterdir()) == []
            await served.remove("p1", "w1")
            await w.store.write(partial(workspaces.update, workspace_id="w1", state=PlaceState.DELETING))
            with pytest.raises(RequestError, match="gone"):
                await served.start("p1", "w1")
            with pytest.raises(RequestError, match="no project"):
                await served.start("p9", "w1")


@pytest.mark.parametrize("state", [PlaceState.PREPARING, PlaceState.CLONING])
async def test_nobody_gets_into_a_workspace_while_the_host_prepares_it(tmp_path: Path, state: PlaceState) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        with trio.fail_after(PATIENCE):
            await w.store.write(partial(workspaces.update, workspace_id="w1", state=state))
            with pytest.raises(RequestError, match="still being prepared") as refused:
                await served.start("p1", "w1")
            assert (refused.value.code, refused.value.retryable) == ("not_ready", True)
            assert w.runtime.boxes == {}
            await w.store.write(partial(workspaces.update, workspace_id="w1", state=PlaceState.READY))
            await served.start("p1", "w1")


async def test_who_waits_for_a_container_that_is_removed_before_it_was_made_is_told(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        with trio.fail_after(PATIENCE):
            owner = Owner(Place("p1", "w1"), served._deps)
            attempt = owner.want()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(owner.obey, "remove", force=True))
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(owner.run)
                await attempt.decided.wait()
            assert attempt.error is not None
            assert attempt.error.code == "not_found"


async def test_nothing_is_kept_of_a_workspace_that_does_not_exist(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        with trio.fail_after(PATIENCE):
            for number in range(20):
                with pytest.raises(RequestError, match="gone"):
                    await served.start("p1", f"no-such-{number}")
                await served.stop("p1", f"no-such-{number}")
            await until(lambda: not served._owners)
        assert w.runtime.calls == ["list"]


async def test_changed_settings_make_a_new_one_when_it_is_started_again(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        with trio.fail_after(PATIENCE):
            async with w.daemon() as served:
                await served.start("p1", "w1")
                await served.stop("p1", "w1")
            w.toolkit = w.home.root / "a-newer-one"
            w.toolkit.mkdir()
            async with w.daemon() as served:
                await served.start("p1", "w1")
        assert (await w.row()).generation == 2
        assert len(w.runtime.boxes) == 1


async def test_an_owner_that_crashes_tells_its_waiters_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        with monkeypatch.context() as broken:

            async def bug(*_args: object) -> str:
                raise ZeroDivisionError("a bug")

            broken.setattr(w.runtime, "ensure_image", bug)
            with trio.fail_after(PATIENCE):
                with pytest.raises(Exception, match="inside Oubliette"):
                    await served.start("p1", "w1")
        with trio.fail_after(PATIENCE):
            await served.start("p1", "w1")


async def test_nothing_is_leased_before_or_after_the_service(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        served: Containers = w.containers()
        with pytest.raises(ContainerError, match="not served"):
            await served.start("p1", "w1")


async def test_killing_a_session_reaches_its_processes(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        with trio.fail_after(PATIENCE):
            async with served.lease("p1", "w1") as ready:
                await fake(ready).say(f"tool {tmp_path}/tool")
                tool = await pid_from(tmp_path / "tool")
                assert await ready.kill_session("ses_tool") == 1
                assert not alive(tool)


def test_a_ready_container_is_what_sessions_expect() -> None:
    assert {"agent", "exec", "directory", "kill_session"} <= set(dir(ReadyContainer))
