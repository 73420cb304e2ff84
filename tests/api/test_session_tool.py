"""The session tool, and what holds for every tool: retries, sizes, spellings, progress."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import httpx
import pytest
import trio

from oubliette.agent.base import Attachment
from oubliette.api.tools import attachments, progress, reply
from oubliette.core.model import EventType, NewEvent
from oubliette.errors import RequestError
from oubliette.store import events, sessions, turns
from tests.api.rpc import messages, open_rpc
from tests.api.world import PROJECT, WORKSPACE, Doors

SPAWN = {"action": "spawn", "message": "say hello", "model": "scripted"}


async def count_sessions(doors: Doors) -> int:
    rows, _ = await doors.world.store.read(partial(sessions.list_page, limit=200))
    return len(rows)


async def test_a_session_from_spawn_to_end_reads_the_same_in_both_eras_and_over_http(doors: Doors) -> None:
    seen: list[list[Any]] = []
    with trio.fail_after(60):
        for door in ("http", "handshake", "modern"):
            results: list[Any] = []

            async def call(**arguments: Any) -> Any:
                if door == "http":  # noqa: B023
                    return await doors.tool("session", "project", **arguments)
                async with open_rpc(doors, "project", modern=door == "modern") as rpc:  # noqa: B023
                    result = await rpc.call("session", **arguments)
                    assert not result["isError"], result
                    assert arguments["action"] not in ("message", "events") or (
                        json.loads(result["content"][0]["text"]) == result["structuredContent"]
                    )
                    return result["structuredContent"]

            first = await call(**SPAWN, new_session=True, title="t")
            session = first["session_id"]
            results.append(first)
            results.append(await call(action="wait", session_ids=[session]))
            results.append(await call(action="message", session_id=session, message="say again"))
            results.append(await call(action="wait", session_id=session))
            results.append(await call(action="events", session_id=session, types=["message", "completion"]))
            results.append(await call(action="get", session_id=session))
            results.append(await call(action="end", session_id=session))
            seen.append([_without_moments(one, session) for one in results])
    assert seen[0] == seen[1] == seen[2]
    texts = [event["text"] for event in seen[0][4]["events"]]
    assert texts == ["hello", "hello", "again", "again"]
    assert seen[0][6]["status"] == "completed"


def _without_moments(value: Any, session: str) -> Any:
    """The result without ids and times, which differ from run to run."""
    text = json.dumps(value).replace(session, "SESSION")
    moments = ("created_at", "updated_at", "since", "ts", "queued_at", "started_at", "ended_at", "part", "status")

    def strip(item: Any) -> Any:
        if isinstance(item, dict):
            first = "deduplicated" in item  # a spawn's status is whatever the moment was
            return {
                k: strip(v)
                for k, v in item.items()
                if k not in moments or (k == "status" and not first and item.get("ended"))
            }
        return [strip(one) for one in item] if isinstance(item, list) else item

    return strip(json.loads(text))


async def test_spawn_reads_as_clients_of_the_go_project_expect(doors: Doors) -> None:
    with trio.fail_after(30):
        async with open_rpc(doors, "project") as rpc:
            made = await rpc.call("session", **SPAWN)
            session = made["structuredContent"]["session_id"]
            lines = made["content"][0]["text"].splitlines()
            assert lines[0] == f"New session created: {session}"
            assert lines[1:3] == [f"Project: {PROJECT}", f"Workspace: {WORKSPACE}"]
            assert lines[3].startswith("Status: ")
            await rpc.call("session", action="wait", session_ids=[session])
            again = await rpc.call("session", **SPAWN)
            assert again["content"][0]["text"].startswith(f"Session resumed: {session}\n")
            got = (await rpc.call("session", action="get", session_id=session))["content"][0]["text"]
            assert got.index(reply.UNTRUSTED) < got.rindex("hello"), "the agent's words come last"


async def test_tolerated_spellings(doors: Doors) -> None:
    with trio.fail_after(30):
        made = await doors.tool("session", "project", prompt="say hi", model="scripted", _session="x", title=None)
        assert made["created"]
        assert (await doors.tool("session", action="list", status="active"))["sessions"]
        listed = await doors.tool("session", action="list", limit="5", max_chars="5000")
        assert len(listed["sessions"]) == 1
        text = json.dumps([made["session_id"]])
        assert (await doors.tool("session", action="wait", session_ids=text))["done"]
        both = await doors.call("session", "project", action="spawn", prompt="a", message="b")
        assert both.status_code == 400


async def test_a_request_key_makes_a_retry_harmless(doors: Doors) -> None:
    with trio.fail_after(30):
        first = await doors.tool("session", "project", **SPAWN, new_session=True, request_key="k1")
        again = await doors.tool("session", "project", **SPAWN, new_session=True, request_key="k1", max_chars=5000)
        assert again == {**first, "deduplicated": True}
        assert await count_sessions(doors) == 1
        other = await doors.call("session", "project", **{**SPAWN, "message": "else"}, request_key="k1")
        assert other.status_code == 409
        assert other.json()["error"]["code"] == "key_reused"
        await doors.tool("session", "admin", **SPAWN, new_session=True, project_id=PROJECT, request_key="k1")
        assert await count_sessions(doors) == 2, "keys are each principal's own"


async def test_two_calls_with_one_key_at_once_are_one(doors: Doors) -> None:
    results: list[Any] = []

    async def spawn() -> None:
        results.append(await doors.tool("session", "project", **SPAWN, new_session=True, request_key="k"))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(spawn)
    assert len({one["session_id"] for one in results}) == 1
    assert sorted(one["deduplicated"] for one in results) == [False] + [True] * 7
    assert await count_sessions(doors) == 1


@pytest.mark.parametrize("modern", [False, True])
async def test_a_retry_after_the_client_left_in_the_middle_finds_the_first_result(doors: Doors, modern: bool) -> None:
    with trio.fail_after(60):
        for attempt in range(12):
            arguments = {**SPAWN, "new_session": True, "request_key": f"k{attempt}"}
            before = await count_sessions(doors)
            async with open_rpc(doors, "project", modern=modern) as rpc:
                with trio.move_on_after(0.001 * attempt):
                    await rpc.call("session", **arguments)
            async with open_rpc(doors, "project", modern=modern) as rpc:
                result = (await rpc.call("session", **arguments))["structuredContent"]
            assert result["session_id"]
            assert await count_sessions(doors) == before + 1


async def test_a_key_that_failed_may_be_used_again(doors: Doors) -> None:
    with trio.fail_after(30):
        bad = await doors.call("session", "project", **{**SPAWN, "model": "nope"}, request_key="k")
        assert bad.status_code == 400
        assert (await doors.tool("session", "project", **SPAWN, request_key="k"))["deduplicated"] is False


async def test_a_tokens_secret_is_shown_once_and_kept_nowhere(doors: Doors) -> None:
    with trio.fail_after(30):
        arguments: dict[str, Any] = {
            "action": "create",
            "name": "ci",
            "scope": f"project:{PROJECT}:ro",
            "expires_in_days": 7,
            "request_key": "k",
        }
        made = await doors.tool("token", **arguments)
        assert made["secret"].startswith("oub_")
        again = await doors.tool("token", **arguments)
        assert again["deduplicated"]
        assert "secret" not in again
        stored = await doors.world.store.read(lambda tx: tx.rows("SELECT result FROM request_keys"))
        assert made["secret"] not in str(stored)
        async with doors.client(made["secret"]) as client:
            assert (await client.post("/v1/tools/session", json={"action": "list"})).status_code == 200
        taken = await doors.call("token", action="create", name="ci", scope="admin")
        assert taken.status_code == 409
        listed = await doors.tool("token", action="list", limit=2)
        assert len(listed["tokens"]) == 2
        assert "secret" not in str(listed)
        assert (await doors.tool("token", action="list", cursor=listed["next_cursor"]))["tokens"]


async def test_answers_are_cut_to_what_was_asked_for_and_say_so(doors: Doors) -> None:
    session = await doors.world.new("say hello")
    await doors.world.settle(session)
    for number in range(60):
        event = NewEvent(EventType.MESSAGE, 1, {"part": f"p{number}", "role": "assistant", "text": "x" * 1000})
        await doors.world.store.write(partial(events.append, session_id=session, event=event))
    with trio.fail_after(30):
        page = await doors.tool("session", action="events", session_id=session)
        assert len(json.dumps(page, separators=(",", ":"))) <= 20_000
        assert page["more"]
        got, last = list(page["events"]), page["last_index"]
        assert last == got[-1]["index"]
        while page["more"]:
            page = await doors.tool("session", action="events", session_id=session, since_index=last)
            got += page["events"]
            last = page["last_index"]
        assert [event["index"] for event in got] == list(range(last + 1)), "nothing is lost by cutting"
        everything = await doors.tool("session", action="events", session_id=session, max_chars=200_000)
        assert len(everything["events"]) == len(got)
        tiny = await doors.tool("session", action="events", session_id=session, since_index=20, max_chars=600)
        assert tiny["events"][0]["text_truncated"] is True
        assert tiny["events"][0]["text_bytes"] == 1000


async def test_lists_page_without_shifting(doors: Doors) -> None:
    made = [await doors.world.new(f"say {n}") for n in range(7)]
    with trio.fail_after(30):
        page = await doors.tool("session", action="list", limit=3)
        seen = [one["session_id"] for one in page["sessions"]]
        await doors.world.new("say late")
        while "next_cursor" in page:
            page = await doors.tool("session", action="list", limit=3, cursor=page["next_cursor"])
            seen += [one["session_id"] for one in page["sessions"]]
        assert sorted(seen) == sorted(made)
        foreign = await doors.call(
            "session",
            "project",
            action="list",
            cursor=(await doors.tool("session", action="list", limit=1))["next_cursor"],
        )
        assert foreign.json()["error"]["code"] == "invalid_cursor"


async def test_events_are_waited_for(doors: Doors) -> None:
    session = await doors.world.new("sleep")
    await doors.world.until(session, "running")
    last = (await doors.world.row(session)).last_index
    with trio.fail_after(30):
        empty = await doors.tool("session", action="events", session_id=session, since_index=last, wait_seconds=0.1)
        assert (empty["events"], empty["last_index"]) == ([], last)
        got: list[Any] = []

        async def follow() -> None:
            arguments: dict[str, Any] = {
                "action": "events",
                "session_id": session,
                "since_index": last,
                "wait_seconds": 20,
            }
            got.append(await doors.tool("session", **arguments))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await trio.sleep(0.3)
            await doors.tool("session", action="interrupt", session_id=session)
        assert got[0]["events"]


async def test_events_of_a_tree_are_merged_by_cursor(doors: Doors) -> None:
    root = await doors.world.new("say hello")
    child = await doors.world.new("say child", parent=root)
    await doors.world.settle(root, child)
    with trio.fail_after(30):
        arguments: dict[str, Any] = {"action": "events", "session_id": root, "max_events": 3, "include_children": True}
        page = await doors.tool("session", **arguments)
        seqs = [event["seq"] for event in page["events"]]
        while page["more"]:
            page = await doors.tool("session", **arguments, cursor=page["cursor"])
            seqs += [event["seq"] for event in page["events"]]
        assert seqs == list(range(len(seqs)))
        assert "last_index" not in page
        only = await doors.tool("session", action="events", session_id=child, include_children=True)
        assert {event["session_id"] for event in only["events"]} == {child}


async def test_an_ask_is_answered_once(doors: Doors) -> None:
    session = await doors.world.new("ask")
    with trio.fail_after(30):
        waiting = await doors.tool("session", "project", action="wait", session_ids=[session])
        ask = waiting["sessions"][0]["pending"][0]
        assert waiting["sessions"][0]["status"] == "waiting"
        won = await doors.tool("session", "project", action="answer", request_id=ask["request_id"], reply="once")
        assert won["accepted"] is True
        lost = await doors.tool("session", "admin", action="answer", request_id=ask["request_id"], reply="reject")
        assert (lost["accepted"], lost["reply"], lost["by"]["name"]) == (False, "once", "project")
        await doors.world.settle(session)


async def test_a_wait_is_never_longer_than_its_client_can_bear(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "MAX_WAIT_SECONDS", 0.3)
    monkeypatch.setattr(progress, "PROGRESS_SECONDS", 0.2)
    session = await doors.world.new("sleep")
    with trio.fail_after(30):
        for modern in (False, True):
            async with open_rpc(doors, modern=modern) as rpc:
                waited = (await rpc.call("session", action="wait", session_ids=[session], wait_seconds=240))[
                    "structuredContent"
                ]
                assert (waited["timed_out"], waited["remaining"]) == (True, [session])
                patient = {
                    "name": "session",
                    "arguments": {"action": "wait", "session_ids": [session], "wait_seconds": 0.7},
                    "_meta": {"progressToken": "p"},
                }
                answer = await rpc.send("tools/call", patient, name="session")
                told = messages(answer.text)
                notes = [one["params"] for one in told if one.get("method") == "notifications/progress"]
                assert len(notes) == 3
                assert all(note["progressToken"] == "p" and note["total"] == 0.7 for note in notes)
                assert [note["progress"] for note in notes] == sorted({note["progress"] for note in notes})
                assert told[-1]["result"]["structuredContent"]["timed_out"] is True


async def test_attachments_arrive_as_bytes(doors: Doors) -> None:
    with trio.fail_after(30):
        given = [{"filename": "a.png", "content_type": "image/png", "data": "iVBORw=="}]
        made = await doors.tool("session", "project", **SPAWN, attachments=given)
        await doors.world.settle(made["session_id"])
        turn = await doors.world.store.read(partial(turns.get, session_id=made["session_id"], turn=1))
        assert turn is not None
        sent = next(iter(doors.world.agent.turns.values()))[0].prompt.attachments
        assert list(sent) == [Attachment("a.png", "image/png", b"\x89PNG")]


def test_attachments_have_limits() -> None:
    one = {"filename": "a", "content_type": "text/plain", "data": "QUFB" * (3 << 20)}
    with pytest.raises(RequestError, match="20 MiB together"):
        attachments.decode([one, one, one])
    with pytest.raises(RequestError, match="larger than 10 MiB"):
        attachments.decode([{**one, "data": "QUFB" * (4 << 20)}])


async def test_the_same_call_from_curl_and_the_error_table(doors: Doors) -> None:
    expected = {
        404: {"action": "get", "session_id": "gogol_none"},
        400: {"action": "get"},
        503: {"action": "spawn", "project_id": PROJECT, "message": "x"},
    }
    with trio.fail_after(30):
        async with httpx.AsyncClient(base_url=doors.url, headers=doors.headers(), trust_env=False) as client:
            for status, arguments in expected.items():
                answer = await client.post("/v1/tools/session", json=arguments)
                assert answer.status_code == status, answer.text
                assert answer.headers["content-type"] == "application/json"


async def test_a_refusal_names_no_argument_that_the_caller_may_not_use(doors: Doors) -> None:
    with trio.fail_after(30):
        spawned = (await doors.call("session", "project", **SPAWN, zzz=1)).json()["error"]["hint"]
        updated = (await doors.call("project", "project", action="update", zzz=1)).json()["error"]["hint"]
        near = (await doors.call("session", "project", **SPAWN, detch=True)).json()["error"]["hint"]
        everything = (await doors.call("project", action="update", zzz=1)).json()["error"]["hint"]
    assert "max_cost_usd" in spawned
    assert not {"detach", "workspace"} & set(spawned.removesuffix(".").split(", "))
    assert "detach" not in near
    assert "agent_scope" not in updated
    assert "agent_scope" in everything
