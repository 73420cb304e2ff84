"""The project and container tools, over HTTP and as MCP clients read them."""

from __future__ import annotations

from functools import partial

import httpx
import pytest
import trio

from oubliette.api.execs import _give_up
from oubliette.store import audit, execs
from oubliette.store.execs import ExecRow, ExecState
from tests.api.rpc import open_rpc
from tests.api.world import PROJECT, WORKSPACE, Doors, FakeContainers, eventually


def containers(doors: Doors) -> FakeContainers:
    found = doors.services.containers
    assert isinstance(found, FakeContainers)
    return found


async def test_a_project_is_made_listed_shown_changed_and_deleted(doors: Doors) -> None:
    with trio.fail_after(30):
        made = await doors.tool("project", action="create", name="shop", autonomy="high", limits={"max_cost_usd": 2})
        project = made["project_id"]
        assert (made["state"], made["autonomy"], made["limits"]["max_cost_usd"]) == ("ready", "high", 2)
        assert {one["project_id"] for one in (await doors.tool("project", action="list"))["projects"]} == {
            project,
            PROJECT,
        }
        found = await doors.tool("project", action="list", name_contains="SHO", limit=1)
        assert [one["project_id"] for one in found["projects"]] == [project]
        more = {"name_contains": "SHO", "limit": 1, "cursor": found["next_cursor"]}
        assert [one["project_id"] for one in (await doors.tool("project", action="list", **more))["projects"]] == [
            PROJECT
        ]
        changed = await doors.tool("project", action="update", project_id=project, name="shop 2", autonomy=None)
        assert (changed["name"], changed["autonomy"]) == ("shop 2", "off")
        gone = await doors.tool("project", action="delete", project_id=project)
        assert gone == {"project_id": project, "name": "shop 2", "state": "deleting", "deleted": True}
        assert (await doors.call("project", action="get", project_id=project)).status_code == 404


async def test_a_clone_that_fails_shows_on_the_project(doors: Doors) -> None:
    with trio.fail_after(30):
        refused = await doors.call("project", action="create", name="x", remote_url="file:///etc")
        assert refused.status_code == 400
        assert refused.json()["error"]["field"] == "remote_url"


async def test_a_project_with_open_sessions_is_deleted_by_force_alone(doors: Doors) -> None:
    session = await doors.world.new("sleep")
    with trio.fail_after(30):
        refused = await doors.call("project", action="delete", project_id=PROJECT)
        assert refused.status_code == 409
        assert refused.json()["error"]["candidates"] == [session]
        assert (await doors.tool("project", action="delete", project_id=PROJECT, force=True))["deleted"]


async def test_a_project_token_sees_its_project_without_host_paths_and_sets_no_guarded_keys(doors: Doors) -> None:
    with trio.fail_after(30):
        mine = await doors.tool("project", "project", action="get")
        assert mine["project_id"] == PROJECT
        assert "path" not in mine
        assert "path" in await doors.tool("project", "auditor", action="get", project_id=PROJECT)
        assert len((await doors.tool("project", "project", action="list"))["projects"]) == 1
        assert (await doors.tool("project", "project", action="update", autonomy="low"))["autonomy"] == "low"
        for arguments in ({"network": "bridge"}, {"model": "scripted"}, {"limits": {"max_cost_usd": 1000}}):
            refused = await doors.call("project", "project", action="update", **arguments)
            assert refused.status_code == 403, refused.text
        assert (await doors.call("project", "project", action="create", name="x")).status_code == 403
        options = await doors.tool("project", "project", action="options")
        assert "credentials" not in options
        assert options["limits"]["max_recursion_depth"] == 3
        assert "credentials" in await doors.tool("project", action="options")


async def test_a_description_that_is_null_is_taken_away_and_one_that_is_absent_stays(doors: Doors) -> None:
    with trio.fail_after(20):
        made = await doors.tool("project", action="create", name="shop", description="sells things")
        update = partial(doors.tool, "project", action="update", project_id=made["project_id"])
        assert (await update(name="shop 2"))["description"] == "sells things"
        assert "description" not in await update(description=None)
        assert (await update(description="sells more"))["description"] == "sells more"
        unnamed = await update(name=None)
        assert unnamed["name"] == "shop 2", "a project always has one"
        refused = await doors.call("project", action="update", project_id=made["project_id"], description="")
        assert refused.status_code == 400


async def test_projects_read_as_clients_of_the_go_project_expect(doors: Doors) -> None:
    with trio.fail_after(30):
        async with open_rpc(doors) as rpc:
            made = await rpc.call("project", action="create", name="shop")
            shape = made["structuredContent"]
            lines = made["content"][0]["text"].splitlines()
            assert f"ID: {shape['project_id']}" in lines
            lines = (await rpc.call("project", action="get", project_id=shape["project_id"]))["content"][0][
                "text"
            ].splitlines()
            assert lines[:2] == ["Project: shop", f"ID: {shape['project_id']}"]
            assert f"Workspace: {shape['path']}/{shape['default_workspace_id']}" in lines
            assert "Image: base" in lines
            assert "Container Status: absent" in lines
            options = await rpc.call("project", action="options")
            assert options["content"][0]["text"].startswith("{")


async def test_a_command_runs_in_the_workspace_and_its_output_comes_back(doors: Doors) -> None:
    with trio.fail_after(30):
        done = await doors.tool("container", "project", action="exec", command="echo hello", working_dir="src")
        assert (done["state"], done["exit_code"], done["stdout"]) == ("done", 0, "/bin/sh -c echo hello")
        assert done["stderr"] == "warned"
        assert containers(doors).ran == [(["/bin/sh", "-c", "echo hello"], f"/workspaces/{WORKSPACE}/src")]
        for command in (["echo", "a b"], '["echo", "a b"]'):
            await doors.tool("container", action="exec", project_id=PROJECT, command=command, working_dir="/tmp")
        assert containers(doors).ran[1:] == [(["echo", "a b"], "/tmp"), (["/bin/sh", "-c", '["echo", "a b"]'], "/tmp")]


async def test_much_output_is_cut_and_says_so(doors: Doors) -> None:
    with trio.fail_after(30):
        done = await doors.tool("container", "project", action="exec", command="echo much", max_output_bytes=100)
        assert len(done["stdout"]) == 100
        assert done["stdout_truncated"] is True
        assert done["stdout_bytes"] == 20_000
        short = await doors.tool("container", "project", action="exec", command="echo much", max_chars=1000)
        assert len(str(short)) < 1100
        assert short["stdout_truncated"] is True


async def test_a_long_command_goes_on_when_its_call_has_answered_or_was_given_up(doors: Doors) -> None:
    with trio.fail_after(30):
        begun = await doors.tool("container", "project", action="exec", command="sleep 1", wait_seconds=0.05)
        assert begun["state"] == "running"
        assert "exit_code" not in begun
        with trio.move_on_after(0.2):
            await doors.call("container", "project", action="exec", command="sleep 2")
        running = await doors.world.store.read(execs.running)
        assert [row.command[-1] for row in running] == ["sleep 1", "sleep 2"]
        still = await doors.tool("container", "project", action="exec", exec_id=begun["exec_id"], wait_seconds=0)
        assert still["state"] == "running"
        foreign = await doors.call("container", "stranger", action="exec", exec_id=begun["exec_id"])
        assert foreign.status_code == 404
        containers(doors).let_go.set()
        for row in running:
            done = await doors.tool("container", "project", action="exec", exec_id=row.exec_id)
            assert (done["state"], done["exit_code"]) == ("done", 0)


async def test_a_command_that_takes_too_long_is_killed_and_that_is_a_result(doors: Doors) -> None:
    with trio.fail_after(30):
        done = await doors.tool("container", "project", action="exec", command="sleep 9", timeout_seconds=0.1)
        assert (done["state"], done["timed_out"], done["exit_code"]) == ("killed", True, 137)


async def test_what_fails_in_a_container_tells_the_caller_nothing_of_the_host(doors: Doors) -> None:
    with trio.fail_after(30):
        done = await doors.tool("container", "project", action="exec", command="broken")
        assert done["state"] == "killed"
        assert done["error"]["code"] == "unavailable"
        assert "/secret" not in str(done)


async def test_a_restart_finds_commands_that_did_not_survive_it(doors: Doors) -> None:
    at = doors.services.now()
    row = ExecRow("exec_old", PROJECT, WORKSPACE, ["x"], ExecState.RUNNING, at, {})
    await doors.world.store.write(partial(execs.insert, row=row))
    await doors.world.store.write(partial(_give_up, at=at))
    with trio.fail_after(30):
        found = await doors.tool("container", action="exec", project_id=PROJECT, exec_id="exec_old")
        assert (found["state"], found["error"]["code"]) == ("killed", "cancelled")


async def test_containers_start_stop_and_tell_their_state(doors: Doors) -> None:
    session = await doors.world.new("sleep")
    with trio.fail_after(30):
        await doors.world.until(session, "running")
        assert (await doors.tool("container", "project", action="start"))["state"] == "absent"
        busy = await doors.call("container", "project", action="start", recreate=True)
        assert busy.status_code == 409
        assert busy.json()["error"]["candidates"] == [session]
        await doors.tool("container", "project", action="start", recreate=True, force=True)
        assert containers(doors).started == [(PROJECT, WORKSPACE, False), (PROJECT, WORKSPACE, True)]
        assert (await doors.tool("container", "project", action="stop"))["workspace_id"] == WORKSPACE
        assert containers(doors).stopped == [(PROJECT, WORKSPACE)]
        assert (await doors.tool("container", "reader", action="status"))["state"] == "absent"
        assert (await doors.tool("container", "project", action="logs", tail=3))["text"] == "line\n" * 3
        assert (await doors.tool("container", action="list"))["containers"] == []
        assert (await doors.call("container", action="status")).json()["error"]["field"] == "project_id"
        containers(doors).error = {"code": "unavailable", "message": "bwrap is missing", "hint": "install it"}
        failed = await doors.call("container", "project", action="start")
        assert failed.status_code == 503
        assert failed.json()["error"]["message"] == "bwrap is missing"


async def test_a_call_with_a_key_does_not_hold_up_the_shutdown(doors: Doors) -> None:
    containers(doors).hangs = True

    async def start() -> None:
        with pytest.raises(httpx.RemoteProtocolError):
            await doors.call("container", "project", action="start", request_key="k")

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            with trio.move_on_after(0.3):
                await doors.call("container", "project", action="start", request_key="k2")
            asked = trio.current_time()
            doors.shutdown.set()
            await doors.served.wait()
            assert trio.current_time() - asked < 3


async def test_what_was_done_and_what_was_refused_is_on_record(doors: Doors) -> None:
    with trio.fail_after(30):
        await doors.tool("project", action="create", name="x")
        await doors.call("project", "reader", action="delete", project_id=PROJECT)

        async def rows() -> list[tuple[str, str, object]]:
            found, _ = await doors.world.store.read(partial(audit.list_page, limit=10))
            return [(row.action, row.outcome, row.principal["name"]) for row in found]

        found = await eventually(rows, lambda found: len(found) == 2)
        assert sorted(found) == [
            ("project.create", "ok", "admin"),
            ("project.delete", "permission_denied", "reader"),
        ]


async def test_a_retried_delete_gets_the_first_result_though_the_project_is_gone(doors: Doors) -> None:
    made = await doors.tool("project", action="create", name="short-lived")
    delete = {"action": "delete", "project_id": made["project_id"], "request_key": "once"}
    first = await doors.tool("project", **delete)
    with trio.fail_after(10):
        while (await doors.call("project", action="get", project_id=made["project_id"])).status_code != 404:
            await trio.sleep(0.01)
    again = await doors.tool("project", **delete)
    assert again["deduplicated"] is True
    assert again["project_id"] == first["project_id"]
    other = await doors.call("project", **{**delete, "request_key": "another"})
    assert other.status_code == 404
