"""MCP in both eras: the same table, calls that end when they should, news that nobody waits for."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

from oubliette import clock
from oubliette.api import mcp_private, notify
from oubliette.api.metrics import REGISTRY
from oubliette.core.model import EventType, NewEvent
from oubliette.store import events, schedules
from tests.api.rpc import Rpc, messages, open_rpc
from tests.api.world import OTHER_PROJECT, PROJECT, Doors, eventually

LISTEN = "subscriptions/listen"


def calls() -> float:
    return REGISTRY.get_sample_value("oubliette_waiting_calls") or 0


async def waiting_calls() -> float:
    await trio.lowlevel.checkpoint()
    return calls()


async def until_calls(number: float) -> None:
    await eventually(waiting_calls, lambda found: found == number)


def wait_for(session: str) -> dict[str, Any]:
    return {"name": "session", "arguments": {"action": "wait", "session_ids": [session]}}


class Notes:
    """The JSON-RPC messages of an open stream."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()

    async def next(self) -> Any:
        async for line in self._lines:
            if line.startswith("data:") and line[5:].strip():
                return json.loads(line[5:])
        raise EOFError

    async def rest(self) -> list[Any]:
        found = []
        with pytest.raises(EOFError):
            while True:
                found.append(await self.next())
        return found


@asynccontextmanager
async def get_stream(rpc: Rpc) -> AsyncIterator[Notes]:
    headers = {**rpc.headers("get"), "accept": "text/event-stream"}
    async with rpc.http.stream("GET", "/mcp", headers=headers) as response:
        assert response.status_code == 200
        yield Notes(response)


@asynccontextmanager
async def listen(rpc: Rpc, *uris: str) -> AsyncIterator[tuple[httpx.Response, Notes]]:
    body = rpc.body(LISTEN, {"notifications": {"resourceSubscriptions": list(uris)}}, request_id=77)
    async with rpc.http.stream("POST", "/mcp", headers=rpc.headers(LISTEN), json=body) as response:
        yield response, Notes(response)


@pytest.mark.parametrize("mode", ["legacy", "modern", "auto"])
async def test_the_sdks_own_client_is_served_in_both_eras(doors: Doors, mode: str) -> None:
    with trio.fail_after(30):
        async with doors.mcp("project", mode) as client:
            if mode != "modern":  # a client that pins the version does not ask who is there
                assert str(client.instructions).startswith("Oubliette runs coding agents")
            names = {tool.name for tool in (await client.list_tools()).tools}
            assert {"project", "session", "container", "schedule"} <= names
            assert "token" not in names
            arguments = {"action": "spawn", "message": "say hi", "model": "scripted"}
            made = await client.call_tool("session", arguments)
            session = made.structured_content["session_id"]
            waited = await client.call_tool("session", {"action": "wait", "session_ids": [session]})
            assert waited.structured_content["sessions"][0]["final_text"] == "hi"
            failed = await client.call_tool("session", {"action": "get", "session_id": "none"})
            assert failed.is_error
            assert failed.structured_content["error"]["code"] == "not_found"


async def test_closing_the_response_cancels_the_call_at_2026_07_28(doors: Doors) -> None:
    session = await doors.world.new("sleep")
    with trio.fail_after(20):
        async with open_rpc(doors, modern=True) as rpc, trio.open_nursery() as nursery:
            nursery.start_soon(partial(rpc.send, "tools/call", wait_for(session), name="session"))
            await until_calls(1)
            nursery.cancel_scope.cancel()
        with trio.fail_after(2):
            await until_calls(0)


async def test_in_the_handshake_era_a_call_survives_its_connection_and_ends_when_told(doors: Doors) -> None:
    session = await doors.world.new("sleep")
    with trio.fail_after(30):
        async with open_rpc(doors) as rpc:
            for request_id in (501, 502):
                body = rpc.body("tools/call", wait_for(session), request_id)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(rpc.http.post, "/mcp", headers=rpc.headers("tools/call"), json=body))
                    await until_calls(1 if request_id == 501 else 2)
                    nursery.cancel_scope.cancel()
            await trio.sleep(0.3)
            assert calls() == 2
            cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 501}}
            await rpc.http.post("/mcp", headers=rpc.headers("x"), json=cancelled)
            with trio.fail_after(2):
                await until_calls(1)
            assert (await rpc.http.delete("/mcp", headers=rpc.headers("x"))).status_code == 200
            with trio.fail_after(2):
                await until_calls(0)
            gone = await rpc.send("ping", {})
            assert gone.status_code == 404


async def test_a_client_without_accept_gets_an_answer(doors: Doors) -> None:
    with trio.fail_after(20):
        async with open_rpc(doors, modern=True) as rpc:
            headers = {name: value for name, value in rpc.headers("tools/list").items() if name != "accept"}
            async with httpx.AsyncClient(base_url=doors.url, trust_env=False, verify=False) as bare:
                bare.headers.pop("accept")
                answer = await bare.post(
                    "/mcp", headers={**headers, **doors.headers()}, json=rpc.body("tools/list", {})
                )
            assert answer.status_code == 200
            assert answer.json()["result"]["tools"]


# --- resources


@pytest.mark.parametrize("modern", [False, True])
async def test_resources_are_the_objects_of_the_tools(doors: Doors, modern: bool) -> None:
    session = await doors.world.new("say hello")
    await doors.world.settle(session)
    with trio.fail_after(30):
        async with open_rpc(doors, "project", modern=modern) as rpc:
            listed = (await rpc.ask("resources/list"))["result"]["resources"]
            assert [one["uri"] for one in listed] == [f"oubliette://sessions/{session}"]
            templates = (await rpc.ask("resources/templates/list"))["result"]["resourceTemplates"]
            assert len(templates) == 4
            for uri, arguments in (
                (
                    f"oubliette://sessions/{session}",
                    ("session", {"action": "get", "session_id": session, "detail": "full"}),
                ),
                (f"oubliette://sessions/{session}/events", ("session", {"action": "events", "session_id": session})),
                (f"oubliette://projects/{PROJECT}", ("project", {"action": "get", "detail": "full"})),
            ):
                contents = (await rpc.ask("resources/read", uri=uri))["result"]["contents"][0]
                assert contents["mimeType"] == "application/json"
                assert json.loads(contents["text"]) == await doors.tool(arguments[0], "project", **arguments[1])
        async with open_rpc(doors, "stranger", modern=modern) as rpc:
            for uri in (
                f"oubliette://sessions/{session}",
                f"oubliette://projects/{PROJECT}",
                "oubliette://sessions/none",
                "file:///etc/passwd",
                f"oubliette://projects/{PROJECT}/events",
                "\u202e" + "x" * 5000,
            ):
                if modern and not uri.isascii():
                    continue  # the uri travels in a header too
                error = (await rpc.ask("resources/read", uri=uri))["error"]
                assert error["code"] == -32602, uri
                assert len(error["message"]) < 300
            assert (await rpc.ask("resources/list"))["result"]["resources"] == []


async def test_listening_is_checked_for_each_resource_and_hears_of_changes(doors: Doors) -> None:
    session = await doors.world.new("say hello")
    await doors.world.settle(session)
    mine = f"oubliette://sessions/{session}"
    with trio.fail_after(30):
        async with open_rpc(doors, "stranger", modern=True) as rpc, listen(rpc, mine) as (response, _):
            refused = json.loads(await response.aread())
            assert refused["error"]["code"] == -32602
            assert refused["error"]["data"]["code"] == "not_found"
        async with open_rpc(doors, "project", modern=True) as rpc, listen(rpc, mine, mine + "/events") as (_, notes):
            acknowledged = await notes.next()
            assert acknowledged["method"] == "notifications/subscriptions/acknowledged"
            assert acknowledged["params"]["notifications"]["resourceSubscriptions"] == [mine, mine + "/events"]
            await doors.tool("session", action="message", session_id=session, message="say more")
            heard = {(await notes.next())["params"]["uri"] for _ in range(2)}
            assert heard == {mine, mine + "/events"}
            assert (await notes.next())["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == 77


async def test_listening_ends_with_a_result_when_the_doors_close(doors: Doors) -> None:
    with trio.fail_after(20):
        uri = f"oubliette://projects/{PROJECT}"
        async with open_rpc(doors, "project", modern=True) as rpc, listen(rpc, uri) as (_, notes):
            await notes.next()
            doors.shutdown.set()
            last = (await notes.rest())[-1]
            assert last["id"] == 77
            assert "result" in last


# --- notifications to handshake clients


async def test_a_handshake_client_hears_of_what_it_spawned_or_subscribed_to(doors: Doors) -> None:
    other = await doors.world.new("sleep")
    with trio.fail_after(30):
        async with open_rpc(doors, "project") as rpc, get_stream(rpc) as notes:
            made = await rpc.call("session", action="spawn", message="say hello", model="scripted", new_session=True)
            session = made["structuredContent"]["session_id"]
            heard: list[Any] = []
            while not heard or heard[-1]["params"]["data"]["type"] != "completion":
                heard.append(await notes.next())
            assert {one["params"]["logger"] for one in heard} == {"oubliette.session"}
            assert {one["params"]["data"]["session_id"] for one in heard} == {session}
            assert heard[-1]["params"]["data"]["text"] == "hello"
            await rpc.ask("resources/subscribe", uri=f"oubliette://sessions/{other}")
            await doors.tool("session", action="interrupt", session_id=other)
            note = await notes.next()
            while note["method"] != "notifications/resources/updated":
                note = await notes.next()
            assert note["params"]["uri"] == f"oubliette://sessions/{other}"
            assert (await rpc.ask("resources/unsubscribe", uri=f"oubliette://sessions/{other}"))["result"] == {}
            foreign = await rpc.ask("resources/subscribe", uri=f"oubliette://projects/{OTHER_PROJECT}")
            assert foreign["error"]["code"] == -32602


async def test_a_subscribed_schedule_tells_of_its_changes_and_runs_until_it_may_no_longer_be_seen(
    doors: Doors,
) -> None:
    made = await doors.tool(
        "schedule", action="create", name="n", cron_expr="@daily", message="say hi", model="scripted",
        targets=[{"project_id": PROJECT}],
    )  # fmt: skip
    schedule_id = made["schedule_id"]
    uri = f"oubliette://schedules/{schedule_id}"
    with trio.fail_after(30):
        async with open_rpc(doors, "project", modern=True) as rpc, listen(rpc, uri) as (_, notes):
            assert (await notes.next())["params"]["notifications"]["resourceSubscriptions"] == [uri]
            await doors.tool("schedule", action="update", schedule_id=schedule_id, name="m")
            assert (await notes.next())["params"]["uri"] == uri
            await doors.tool("schedule", action="trigger", schedule_id=schedule_id)
            assert (await notes.next())["params"]["uri"] == uri
        look = partial(doors.tool, "schedule", action="history", schedule_id=schedule_id)
        await eventually(look, lambda page: "ended_at" in page["runs"][0])
        async with open_rpc(doors, "project") as rpc, get_stream(rpc) as notes:
            assert (await rpc.ask("resources/subscribe", uri=uri))["result"] == {}
            await doors.tool("schedule", action="update", schedule_id=schedule_id, name="o")
            assert (await notes.next())["params"]["uri"] == uri
            gone = partial(schedules.project_deleted, project_id=PROJECT, at=clock.now())
            await doors.world.store.write(gone)
            session = await doors.world.new("say this comes after it")
            await rpc.ask("resources/subscribe", uri=f"oubliette://sessions/{session}")
            await doors.tool("session", action="end", session_id=session)
            heard = (await notes.next())["params"].get("uri")
            assert heard == f"oubliette://sessions/{session}", "its place is no longer the client's"


async def test_a_client_hears_no_more_than_the_level_it_set(doors: Doors) -> None:
    with trio.fail_after(30):
        async with open_rpc(doors, "project") as rpc, get_stream(rpc) as notes:
            assert (await rpc.ask("logging/setLevel", level="notice"))["result"] == {}
            await rpc.call("session", action="spawn", message="ask", model="scripted")
            note = await notes.next()
            assert (note["params"]["level"], note["params"]["data"]["type"]) == ("notice", "permission_request")


async def test_a_stream_that_nobody_reads_freezes_neither_its_session_nor_the_publisher(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "STUCK_SECONDS", 0.5)
    host, port = doors.url.removeprefix("http://").split(":")
    with trio.fail_after(60):
        async with open_rpc(doors, "project") as rpc:
            made = await rpc.call("session", action="spawn", message="say hello", model="scripted")
            session = made["structuredContent"]["session_id"]
            await doors.world.settle(session)
            sock = trio.socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await sock.connect((host, int(port)))
            async with trio.SocketStream(sock) as stuck:
                headers = {**rpc.headers("x"), **doors.headers("project"), "accept": "text/event-stream", "host": host}
                head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                await stuck.send_all(f"GET /mcp HTTP/1.1\r\n{head}\r\n".encode())
                await trio.sleep(0.3)
                body = {"code": "model_error", "message": "x" * 7000}
                started = trio.current_time()
                for _ in range(1500):
                    new = NewEvent(EventType.ERROR, 1, {"error": body})
                    await doors.world.store.write(partial(events.append, session_id=session, event=new))
                slowest = (trio.current_time() - started) / 1500
                with trio.fail_after(10):
                    assert not (await rpc.call("session", action="get", session_id=session))["isError"]
                assert slowest < 0.1, "the publisher waited for a reader"


def test_the_private_parts_are_still_there() -> None:
    manager = StreamableHTTPSessionManager(Server("x"))
    assert mcp_private.open_sessions(manager) == 0
    mcp_private.close_all_streams(manager)
    mcp_private.close_stream(manager, "none")


async def test_two_clients_with_the_same_request_ids_are_not_mixed_up(doors: Doors) -> None:
    first = await doors.world.new("say one")
    second = await doors.world.new("say two")
    await doors.world.settle(first, second)
    with trio.fail_after(30):
        async with open_rpc(doors) as one, open_rpc(doors) as two:
            found: dict[int, str] = {}

            async def ask(number: int, rpc: Rpc, session: str) -> None:
                body = rpc.body("tools/call", wait_for(session), request_id=1)
                answer = await rpc.http.post("/mcp", headers=rpc.headers("tools/call"), json=body)
                result = messages(answer.text)[-1]["result"]["structuredContent"]
                found[number] = result["sessions"][0]["final_text"]

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, 1, one, first)
                nursery.start_soon(ask, 2, two, second)
            assert found == {1: "one", 2: "two"}
