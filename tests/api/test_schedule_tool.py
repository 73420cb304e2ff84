"""The ``schedule`` tool: what it takes and says, who may do what, and that nothing leaks."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import trio

from oubliette import clock
from oubliette.core import access, place_shapes
from oubliette.core.model import Json, PlaceState, ProjectRow, WorkspaceRow
from oubliette.core.principals import Principal, Scope
from oubliette.errors import RequestError
from oubliette.store import projects, schedules, workspaces
from oubliette.store.database import Tx
from tests.api.rpc import open_rpc
from tests.api.world import OTHER_PROJECT, PROJECT, WORKSPACE, Doors, eventually, read_sse

OTHER_WORKSPACE = "91aa0000-0000-4000-8000-00000000000f"
PROMPT = "say the nightly report"


@pytest.fixture
async def both(doors: Doors) -> Doors:
    """Doors of a house with a second project, which ``stranger`` has a token of."""

    def unit(tx: Tx) -> None:
        at = clock.now()
        by = {"kind": "local", "id": "local", "name": "oubliette"}
        projects.insert(
            tx, ProjectRow(OTHER_PROJECT, "other", PlaceState.READY, at, at, by, default_workspace_id=OTHER_WORKSPACE)
        )
        workspaces.insert(tx, WorkspaceRow(OTHER_WORKSPACE, OTHER_PROJECT, True, PlaceState.READY, at))

    await doors.world.store.write(unit)
    return doors


async def make(doors: Doors, who: str = "admin", **more: Any) -> Json:
    asked = {"name": "nightly", "cron_expr": "0 3 * * *", "message": PROMPT, "targets": [{"project_id": PROJECT}]}
    return await doors.tool("schedule", who, **{"action": "create", **asked, "model": "scripted", **more})


async def ended(doors: Doors, schedule_id: str, count: int = 1) -> list[Json]:
    """Its newest runs, once so many are over."""

    async def look() -> list[Json]:
        return list((await doors.tool("schedule", action="history", schedule_id=schedule_id))["runs"])

    with trio.fail_after(20):
        return await eventually(look, lambda runs: len([run for run in runs if "ended_at" in run]) >= count)


async def test_a_schedule_is_made_shown_changed_and_deleted(doors: Doors) -> None:
    made = await make(doors, timezone="Europe/Berlin", max_cost_usd=2, timeout_minutes=30)
    place_shapes.Schedule.model_validate(made)
    schedule_id = made["schedule_id"]
    assert schedule_id.startswith("sched_")
    assert made["enabled"] is True
    assert (made["overlap_behavior"], made["session_behavior"], made["misfire"]) == ("skip", "resume", "skip")
    assert made["next_run_at"] == made["next_runs"][0]
    assert datetime.fromisoformat(made["next_run_at"]) - clock.now() < timedelta(days=1)
    assert made["targets"][0]["project_id"] == PROJECT
    shown = await doors.tool("schedule", "reader", action="get", schedule_id=schedule_id)
    assert {**shown, "next_runs": 0} == {**made, "next_runs": 0}
    changed = await doors.tool(
        "schedule", action="update", schedule_id=schedule_id, cron_expr="@hourly", max_cost_usd=None, timezone=None
    )
    assert (changed["cron_expr"], changed["timezone"], changed["timeout_minutes"]) == ("@hourly", "UTC", 30)
    assert "max_cost_usd" not in changed
    (listed,) = (await doors.tool("schedule", "project", action="list"))["schedules"]
    assert listed["schedule_id"] == schedule_id
    assert "created_by" not in listed
    gone = await doors.tool("schedule", action="delete", schedule_id=schedule_id)
    assert gone == {"schedule_id": schedule_id, "deleted": True}
    assert (await doors.call("schedule", action="get", schedule_id=schedule_id)).status_code == 404
    assert (await doors.tool("schedule", action="list"))["schedules"] == []


async def test_the_prose_says_when_in_the_schedules_zone_and_in_utc(doors: Doors) -> None:
    made = await make(doors, timezone="Asia/Tokyo")
    async with open_rpc(doors, "project") as rpc:
        text = (await rpc.call("schedule", action="get", schedule_id=made["schedule_id"]))["content"][0]["text"]
        listed = (await rpc.call("schedule", action="list"))["content"][0]["text"]
        preview = await rpc.call("schedule", action="preview", cron_expr="0 3 * * *", timezone="Asia/Tokyo")
    assert text.startswith(f"Schedule: {made['schedule_id']}\nName: nightly\nWhen: 0 3 * * * Asia/Tokyo\n")
    assert "03:00 Asia/Tokyo (" in text
    assert "T18:00:00.000Z)" in text
    assert "Status: enabled" in text
    assert text.endswith(f"--- the prompt ---\n{PROMPT}")
    assert listed.startswith("Schedules: 1\n" + made["schedule_id"])
    assert "T03:00:00+09:00 (" in preview["content"][0]["text"]
    assert len(preview["structuredContent"]["next_runs"]) == 5


async def test_json_text_is_taken_for_targets_and_a_token_of_one_project_need_not_name_it(doors: Doors) -> None:
    spelled = json.dumps([{"project_id": PROJECT, "workspace_id": WORKSPACE}])
    made = await make(doors, targets=spelled)
    assert made["targets"][0]["workspace_id"] == WORKSPACE
    own = await make(doors, "project", targets=[{}])
    assert own["targets"][0]["project_id"] == PROJECT
    needed = await doors.call(
        "schedule", action="create", name="n", cron_expr="@daily", message="x", targets=[{}], model="scripted"
    )
    assert needed.json()["error"]["message"] == "targets 1 needs a project_id"


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"cron_expr": "0 25 * * *"}, "cron_expr", "hour"),
        ({"cron_expr": "0 3 30 2 *"}, "cron_expr", "never"),
        ({"timezone": "Europe/Berln"}, "timezone", "time zone"),
        ({"targets": []}, "targets", "at least"),
        ({"targets": "nonsense"}, "targets", "must be an array"),
        ({"targets": [{"project": PROJECT}]}, "targets", "1 has no member 'project'"),
        ({"targets": [{"project_id": PROJECT, "workspace_id": 7}]}, "targets", "1 has a workspace_id that is no id"),
        ({"targets": ["shop"]}, "targets", "must hold objects"),
        ({"targets": [{"project_id": PROJECT}] * 51}, "targets", "at most 50"),
        ({"overlap_behavior": "parallel"}, "overlap_behavior", "session_behavior"),
        ({"overlap_behavior": "pile"}, "overlap_behavior", "skip, queue, parallel"),
        ({"jitter_seconds": -1}, "jitter_seconds", "at least 0"),
        ({"max_cost_usd": 0}, "max_cost_usd", "more than 0"),
        ({"message": ""}, "message", "empty"),
        ({"model": "no-such"}, "model", "no-such"),
        ({"every": "day"}, "every", "no argument"),
    ],
)
async def test_what_is_wrong_is_said_in_one_sentence_that_names_the_field(
    doors: Doors, changes: Json, field: str, said: str
) -> None:
    asked: Json = {"name": "n", "cron_expr": "@daily", "message": "x", "targets": [{"project_id": PROJECT}]}
    answer = await doors.call("schedule", **{"action": "create", "model": "scripted", **asked, **changes})
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (400, field), error
    assert said in error["message"] + error.get("hint", ""), error
    assert "\n" not in error["message"]
    assert (await doors.tool("schedule", action="list"))["schedules"] == []


async def test_an_update_needs_something_to_change_and_null_only_where_there_is_a_default(doors: Doors) -> None:
    schedule_id = (await make(doors))["schedule_id"]
    nothing = (await doors.call("schedule", action="update", schedule_id=schedule_id)).json()["error"]
    assert "something to change" in nothing["message"]
    null = (await doors.call("schedule", action="update", schedule_id=schedule_id, name=None)).json()["error"]
    assert (null["field"], null["message"]) == ("name", "name has no default to go back to")


async def test_a_retry_makes_one_schedule_and_one_run_and_gets_the_first_result_of_a_delete(doors: Doors) -> None:
    first = await make(doors, request_key="k1")
    again = await make(doors, request_key="k1")
    assert (again["schedule_id"], again["deduplicated"]) == (first["schedule_id"], True)
    named = {"schedule_id": first["schedule_id"], "request_key": "k2"}
    run = await doors.tool("schedule", action="trigger", **named)
    assert (await doors.tool("schedule", action="trigger", **named))["run_ids"] == run["run_ids"]
    assert len(await ended(doors, first["schedule_id"])) == 1
    for attempt in range(2):
        deleted = await doors.tool("schedule", action="delete", **named)
        assert (deleted["deleted"], deleted.get("deduplicated", False)) == (True, bool(attempt))
    reused = await doors.call("schedule", action="delete", schedule_id="sched_other", request_key="k2")
    assert reused.json()["error"]["code"] == "key_reused"


async def test_a_triggered_run_is_followed_to_its_end_in_the_pinned_session(doors: Doors) -> None:
    schedule_id = (await make(doors))["schedule_id"]
    started = await doors.tool("schedule", "project", action="trigger", schedule_id=schedule_id)
    (run,) = await ended(doors, schedule_id)
    place_shapes.Run.model_validate(run)
    assert [run["run_id"]] == started["run_ids"]
    assert (run["status"], run["trigger"], run["output"]) == ("succeeded", "manual", "the nightly report")
    (target,) = (await doors.tool("schedule", action="get", schedule_id=schedule_id))["targets"]
    assert target["session_id"] == run["session_id"]
    assert target["last_run"]["run_id"] == run["run_id"]
    again = await doors.tool("schedule", action="trigger", schedule_id=schedule_id)
    second = (await ended(doors, schedule_id, 2))[0]
    assert (second["session_id"], second["turn"]) == (run["session_id"], 2)
    assert again["runs"][0]["run_id"] == second["run_id"]
    page = await doors.tool("schedule", action="history", schedule_id=schedule_id, limit=1)
    rest = await doors.tool("schedule", action="history", schedule_id=schedule_id, limit=1, cursor=page["next_cursor"])
    assert [page["runs"][0]["run_id"], rest["runs"][0]["run_id"]] == [second["run_id"], run["run_id"]]
    none = await doors.tool("schedule", action="history", schedule_id=schedule_id, status="failed")
    assert none["runs"] == []
    wrong = await doors.call("schedule", action="history", schedule_id=schedule_id, status="fine")
    assert "status must be one of claimed, queued" in wrong.json()["error"]["message"]


async def test_what_an_agent_said_comes_last_in_the_prose_and_is_cut_in_lists(doors: Doors) -> None:
    schedule_id = (await make(doors, message="say " + "word " * 400))["schedule_id"]
    await doors.tool("schedule", action="trigger", schedule_id=schedule_id)
    await ended(doors, schedule_id)
    async with open_rpc(doors, "project") as rpc:
        answer = await rpc.call("schedule", action="history", schedule_id=schedule_id)
    text, (run,) = answer["content"][0]["text"], answer["structuredContent"]["runs"]
    assert text.index("--- written by the agent") > text.index(run["run_id"])
    assert (len(run["output"]), run["output_truncated"]) == (300, True)
    assert run["output_bytes"] > 1000
    full = await doors.tool("schedule", action="history", schedule_id=schedule_id, detail="full")
    assert len(full["runs"][0]["output"]) > 1000


# --- who may do what


async def test_a_schedule_of_another_project_does_not_exist_for_a_token(both: Doors) -> None:
    schedule_id = (await make(both))["schedule_id"]
    for arguments in (
        {"action": "get", "schedule_id": schedule_id},
        {"action": "history", "schedule_id": schedule_id},
        {"action": "update", "schedule_id": schedule_id, "enabled": False},
        {"action": "delete", "schedule_id": schedule_id},
        {"action": "trigger", "schedule_id": schedule_id},
        {"action": "list", "project_id": PROJECT},
    ):
        foreign = await both.call("schedule", "stranger", **arguments)
        unknown = await both.call(
            "schedule",
            "stranger",
            **{name: "sched_none" if name.endswith("_id") else value for name, value in arguments.items()},
        )
        assert (foreign.status_code, unknown.status_code) == (404, 404), (arguments, foreign.text)
        same = [{k: v for k, v in one.json()["error"].items() if k != "request_id"} for one in (foreign, unknown)]
        assert same[0] == same[1], "unknown and foreign look alike"
    assert (await both.tool("schedule", "stranger", action="list"))["schedules"] == []


@pytest.mark.parametrize(
    "target",
    [{"project_id": PROJECT}, {"project_id": OTHER_PROJECT, "workspace_id": WORKSPACE}, {"workspace_id": WORKSPACE}],
)
async def test_nobody_can_aim_at_a_place_that_is_not_theirs(both: Doors, target: Json) -> None:
    own = await make(both, "stranger", targets=[{"project_id": OTHER_PROJECT}])
    asked = {"name": "n", "cron_expr": "@daily", "message": "x", "targets": [{}, target]}
    refused = await both.call("schedule", "stranger", action="create", **asked)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")
    moved = await both.call("schedule", "stranger", action="update", schedule_id=own["schedule_id"], targets=[target])
    assert (moved.status_code, moved.json()["error"]["code"]) == (404, "not_found")


async def test_changing_needs_write_on_every_target_and_reading_shows_ones_own(both: Doors) -> None:
    made = await make(both, targets=[{"project_id": PROJECT}, {"project_id": OTHER_PROJECT}])
    schedule_id = made["schedule_id"]
    assert len(made["targets"]) == 2
    await both.tool("schedule", action="trigger", schedule_id=schedule_id)
    await ended(both, schedule_id, 2)
    for who, project_id in (("project", PROJECT), ("stranger", OTHER_PROJECT)):
        shown = json.dumps(
            [
                await both.tool("schedule", who, action="get", schedule_id=schedule_id, detail="full"),
                await both.tool("schedule", who, action="list", detail="full"),
                await both.tool("schedule", who, action="history", schedule_id=schedule_id, detail="full"),
            ]
        )
        foreign = PROJECT if project_id == OTHER_PROJECT else OTHER_PROJECT
        assert project_id in shown
        assert foreign not in shown
        for action in ("update", "delete", "trigger"):
            more = {"enabled": False} if action == "update" else {}
            refused = await both.call("schedule", who, action=action, schedule_id=schedule_id, **more)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
            assert foreign not in refused.text
    assert len((await both.tool("schedule", action="get", schedule_id=schedule_id))["targets"]) == 2


async def test_who_may_only_read_may_change_nothing(doors: Doors) -> None:
    schedule_id = (await make(doors))["schedule_id"]
    for who in ("reader", "auditor"):
        assert (await doors.tool("schedule", who, action="get", schedule_id=schedule_id))["message"] == PROMPT
        assert (await doors.tool("schedule", who, action="preview", cron_expr="@daily"))["next_runs"]
        for action in ("update", "delete", "trigger"):
            refused = await doors.call("schedule", who, action=action, schedule_id=schedule_id)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied"), refused.text


async def test_only_those_who_may_read_the_project_see_prompt_and_output(both: Doors) -> None:
    schedule_id = (await make(both, message="say the secret plan"))["schedule_id"]
    await both.tool("schedule", action="trigger", schedule_id=schedule_id)
    await ended(both, schedule_id)
    for arguments in ({"action": "list"}, {"action": "get", "schedule_id": schedule_id}):
        assert "secret plan" in (await both.call("schedule", "reader", **arguments)).text
        assert "secret plan" not in (await both.call("schedule", "stranger", **arguments)).text
    assert "secret plan" in (await both.call("schedule", "reader", action="history", schedule_id=schedule_id)).text


# --- what becomes of it when things go away


async def test_the_end_of_its_token_pauses_it_and_another_token_takes_it_over(doors: Doors) -> None:
    await doors.add_token("brief", f"project:{PROJECT}")
    schedule_id = (await make(doors, "brief"))["schedule_id"]
    await doors.tool("token", action="revoke", name="brief")

    async def look() -> Json:
        return await doors.tool("schedule", action="get", schedule_id=schedule_id)

    with trio.fail_after(5):
        paused = await eventually(look, lambda shown: "paused" in shown)
    assert paused["paused"]["reason"] == "token_revoked"
    assert "brief" in paused["paused"]["text"]
    assert "next_run_at" not in paused
    async with open_rpc(doors, "project") as rpc:
        text = (await rpc.call("schedule", action="get", schedule_id=schedule_id))["content"][0]["text"]
    assert "Status: paused since " in text
    assert "was revoked" in text
    resumed = await doors.tool("schedule", "project", action="update", schedule_id=schedule_id, enabled=True)
    assert "paused" not in resumed
    assert "next_run_at" in resumed
    row = await doors.world.store.read(partial(schedules.get, schedule_id=schedule_id))
    assert row is not None
    assert row.authority == "tok_api_project"


async def test_a_token_that_expires_within_a_week_is_a_notice_in_every_view(doors: Doors) -> None:
    await doors.add_token("brief", f"project:{PROJECT}", expires_at=clock.now() + timedelta(days=3))
    schedule_id = (await make(doors, "brief"))["schedule_id"]
    for view in (
        await doors.tool("schedule", action="get", schedule_id=schedule_id),
        (await doors.tool("schedule", action="list"))["schedules"][0],
    ):
        assert view["notice"]["reason"] == "token_expires"
        assert "brief" in view["notice"]["text"]
        place_shapes.Schedule.model_validate(view)
    async with open_rpc(doors, "project") as rpc:
        text = (await rpc.call("schedule", action="get", schedule_id=schedule_id))["content"][0]["text"]
    assert "Notice: The token brief" in text


async def test_a_workspace_that_was_deleted_pauses_it_and_that_is_said(doors: Doors) -> None:
    made = await make(doors, targets=[{"project_id": PROJECT, "workspace_id": WORKSPACE}])
    await doors.world.store.write(
        partial(schedules.workspace_deleted, workspace_id=WORKSPACE, at=datetime(2026, 11, 22, tzinfo=UTC))
    )
    shown = await doors.tool("schedule", action="get", schedule_id=made["schedule_id"])
    assert shown["paused"]["reason"] == "workspace_deleted"
    assert "workspace" in shown["paused"]["text"]


async def test_a_schedule_without_its_last_project_is_the_operators_alone(both: Doors) -> None:
    made = await make(both, targets=[{"project_id": OTHER_PROJECT}])
    await both.world.store.write(
        partial(schedules.project_deleted, project_id=OTHER_PROJECT, at=datetime(2026, 11, 22, tzinfo=UTC))
    )
    shown = await both.tool("schedule", action="get", schedule_id=made["schedule_id"])
    assert (shown["paused"]["reason"], shown["targets"]) == ("project_deleted", [])
    assert (await both.call("schedule", "stranger", action="get", schedule_id=made["schedule_id"])).status_code == 404
    refused = await both.call("schedule", action="trigger", schedule_id=made["schedule_id"])
    assert refused.json()["error"]["code"] == "conflict"
    assert (await both.tool("schedule", action="delete", schedule_id=made["schedule_id"]))["deleted"] is True


# --- push


async def test_the_stream_of_everything_has_runs_and_no_texts(both: Doors) -> None:
    schedule_id = (await make(both, message="say the secret plan"))["schedule_id"]
    async with (
        both.client("reader") as http,
        both.client("stranger") as strangers,
        http.stream("GET", "/v1/events") as mine,
        strangers.stream("GET", "/v1/events") as theirs,
    ):
        assert (mine.status_code, theirs.status_code) == (200, 200)
        started = await both.tool("schedule", action="trigger", schedule_id=schedule_id)
        kinds = []
        with trio.fail_after(20):
            async for event in read_sse(mine):
                assert "secret plan" not in json.dumps(event.data)
                if event.event.startswith("schedule_run"):
                    kinds.append(event.event)
                    assert event.data["data"]["run"]["run_id"] == started["run_ids"][0]
                    if event.event == "schedule_run_ended":
                        break
        assert kinds == ["schedule_run_started", "schedule_run_ended"]
        with trio.move_on_after(0.3):
            async for event in read_sse(theirs):
                assert event.data.get("project_id") == OTHER_PROJECT


async def test_a_schedule_is_a_resource_for_those_who_may_see_it(doors: Doors) -> None:
    schedule_id = (await make(doors))["schedule_id"]
    uri = f"oubliette://schedules/{schedule_id}"
    async with open_rpc(doors, "project") as rpc:
        read = await rpc.ask("resources/read", uri=uri)
        assert json.loads(read["result"]["contents"][0]["text"])["schedule_id"] == schedule_id
    async with open_rpc(doors, "stranger") as rpc:
        for method in ("resources/read", "resources/subscribe"):
            assert "error" in await rpc.ask(method, uri=uri)
        unknown = await rpc.ask("resources/subscribe", uri="oubliette://schedules/sched_none")
        assert unknown["error"]["data"]["code"] == "not_found"


def test_agents_have_no_schedules_whatever_they_were_lent() -> None:
    actions = [action for action in access.TABLE if action.startswith("schedule.")]
    assert len(actions) == 8
    own = Scope("session", project_id=PROJECT, session_id="gogol_1")
    assert not any(access.may_ever(Principal("session", "gogol_1", "agent", own), action) for action in actions)
    for scope in (Scope("project", project_id=PROJECT), Scope("admin")):
        lent = Principal("agent", "gogol_1", "agent", scope, grant="tok_1")
        assert {action for action in actions if access.may_ever(lent, action)} == {
            "schedule.get",
            "schedule.list",
            "schedule.history",
            "schedule.preview",
        }
        with pytest.raises(RequestError) as refused:
            access.check(lent, "schedule.create", PROJECT)
        assert refused.value.code == "permission_denied"
        assert "not for agents" in refused.value.hint
