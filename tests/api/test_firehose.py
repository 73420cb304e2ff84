"""The stream of everything: what happens, nothing of what is said."""

from __future__ import annotations

import trio

from oubliette.api import firehose
from oubliette.core.model import SessionStatus
from tests.api.test_streams import idle, take
from tests.api.world import PROJECT, Doors, Sse, read_sse


async def test_the_stream_of_everything_has_states_asks_and_children_and_no_texts(doors: Doors) -> None:
    with trio.fail_after(20):
        async with doors.client("reader") as client, client.stream("GET", "/v1/events") as response:
            reader = read_sse(response)
            root = await doors.world.new("ask for SECRETWORD")
            got: list[Sse] = []
            while not got or got[-1].event != "permission_request":
                got.append(await anext(reader))
            ask = got[-1].data["request"]
            assert set(ask) == {"request_id", "kind", "session_id", "turn", "created_at", "expires_at", "on_expiry"}
            await doors.tool("session", action="answer", request_id=ask["request_id"], reply="once")
            while got[-1].event != "completion":
                got.append(await anext(reader))
    assert {one.event for one in got} >= {"status", "turn_queued", "turn_started", "request_resolved", "completion"}
    assert all(one.data["session_id"] == root and one.data["project_id"] == PROJECT for one in got)
    assert "SECRETWORD" not in str(got)
    assert not any("text" in one.data for one in got)


async def test_a_stranger_sees_nothing_of_other_projects(doors: Doors) -> None:
    with trio.fail_after(20):
        async with doors.client("stranger") as client, client.stream("GET", "/v1/events") as response:
            await idle(doors)
            with trio.move_on_after(0.5):
                assert await take(response, 1) == []


async def test_a_short_absence_from_the_stream_of_everything_is_made_up_for(doors: Doors) -> None:
    with trio.fail_after(20):
        async with doors.client() as client:
            async with client.stream("GET", "/v1/events") as response:
                session = await idle(doors)
                first = (await take(response, 2))[-1]
            await doors.tool("session", action="end", session_id=session)
            async with client.stream("GET", "/v1/events", headers={"last-event-id": str(first.id)}) as response:
                seen: list[Sse] = []
                async for one in read_sse(response):
                    seen.append(one)
                    if one.event == "status" and one.data["status"]["to"] == SessionStatus.COMPLETED:
                        break
            numbers = [int(str(one.id).partition("-")[2]) for one in seen]
            assert numbers == list(range(int(str(first.id).partition("-")[2]) + 1, numbers[-1] + 1))
            for lost in ("other-7", "x", f"{str(first.id).partition('-')[0]}-99999"):
                async with client.stream("GET", "/v1/events", headers={"last-event-id": lost}) as response:
                    await doors.world.new("say x")
                    assert (await take(response, 1))[0].event == "gap"


async def test_a_listener_that_lags_is_told_that_it_missed_something() -> None:
    listener = firehose.Listener(lambda _project: True)
    for number in range(1500):
        listener.offer(firehose.Entry(number, PROJECT, b"x"))
    assert listener.lost
    batch = await listener.next_batch()
    assert [entry.number for entry in batch] == list(range(500, 1500))
