"""Event streams: everything exactly once, whatever breaks in between, and nobody waits for a slow reader."""

from __future__ import annotations

import random
import socket
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from oubliette.agent.base import AgentDelta
from oubliette.api import streams
from oubliette.api.frames import Frames, sent_shape
from oubliette.api.streams import StreamArgs, pieces, session_stream
from oubliette.core.limits import EVENT_SENT_BYTES, STREAM_BACKLOG_EVENTS, STREAMS_PER_TOKEN
from oubliette.core.model import EventRow, EventType, NewEvent
from oubliette.core.principals import Principal, Scope
from oubliette.store import events, sessions
from tests.api.world import PROJECT, Doors, Sse, open_doors, read_sse

ADMIN = Principal("token", "tok_api_admin", "admin", Scope("admin"))


def message(text: str) -> NewEvent:
    return NewEvent(EventType.MESSAGE, 1, {"part": "p", "role": "assistant", "text": text})


async def append(doors: Doors, session: str, event: NewEvent) -> EventRow:
    row = await doors.world.store.write(partial(events.append, session_id=session, event=event))
    assert row is not None
    return row


async def idle(doors: Doors, parent: str | None = None) -> str:
    session = await doors.world.new("say hello", parent=parent)
    await doors.world.settle(session)
    return session


async def take(response: httpx.Response, number: int) -> list[Sse]:
    found: list[Sse] = []
    async for one in read_sse(response):
        found.append(one)
        if len(found) == number:
            break
    return found


async def test_a_stream_begins_with_the_log_goes_on_live_and_ends_with_the_session(doors: Doors) -> None:
    session = await idle(doors)
    with trio.fail_after(20):
        async with doors.client("reader") as client:
            async with client.stream("GET", f"/v1/sessions/{session}/events") as response:
                assert response.headers["content-type"].startswith("text/event-stream")
                assert response.headers["cache-control"] == "no-store"
                got: list[Sse] = []
                async for one in read_sse(response):
                    got.append(one)
                    if one.event == "completion":
                        await append(doors, session, message("later"))
                    if one.data.get("text") == "later":
                        await doors.tool("session", action="end", session_id=session)
            log = await doors.world.log(session)
            assert [one.id for one in got[:-1]] == [str(event.index) for event in log]
            assert [one.event for one in got[:-1]] == [event.type.value for event in log]
            assert [one.data["index"] for one in got[:-1]] == list(range(len(log)))
            assert (got[-1].event, got[-1].id) == ("end", None)
            for cursor in ({"last-event-id": str(log[-1].index)}, {}):
                again = await client.get(
                    f"/v1/sessions/{session}/events", params={} if cursor else {"since": log[-1].index}, headers=cursor
                )
                assert (again.status_code, again.content) == (204, b"")
            whole = await client.get(f"/v1/sessions/{session}/events")
            assert whole.text.startswith("retry: 2000\n\n")
            assert whole.text.count("event: ") == len(log) + 1


async def test_last_event_id_wins_over_since(doors: Doors) -> None:
    session = await idle(doors)
    with trio.fail_after(20):
        async with doors.client() as client:
            url = f"/v1/sessions/{session}/events"
            async with client.stream("GET", url, params={"since": 3}, headers={"last-event-id": "1"}) as response:
                assert (await take(response, 1))[0].id == "2"
            async with client.stream("GET", url, params={"since": 3}) as response:
                assert (await take(response, 1))[0].id == "4"


@pytest.mark.parametrize("bad", ["x", "1.5", "", "--1", "9" * 30, "٣"])
async def test_a_cursor_that_is_none_is_refused(doors: Doors, bad: str) -> None:
    session = await idle(doors)
    with trio.fail_after(20):
        async with doors.client() as client:
            answer = await client.get(f"/v1/sessions/{session}/events", params={"since": bad})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_cursor")


async def test_a_cursor_outside_of_the_log_is_answered_with_a_gap(doors: Doors) -> None:
    session = await idle(doors)
    newest = (await doors.world.row(session)).last_index
    with trio.fail_after(20):
        async with doors.client() as client:
            url = f"/v1/sessions/{session}/events"
            async with client.stream("GET", url, params={"since": newest + 5}) as response:
                reader = read_sse(response)
                gap = await anext(reader)
                assert (gap.event, gap.data["since"], gap.data["at"]) == ("gap", newest + 5, newest)
                await append(doors, session, message("new"))
                assert (await anext(reader)).id == str(newest + 1)
            purge = "UPDATE event_logs SET oldest_index = 3"
            await doors.world.store.write(lambda tx: tx.run(purge))
            await doors.world.store.write(lambda tx: tx.run('DELETE FROM events WHERE "index" < 3'))
            async with client.stream("GET", url, params={"since": 0}) as response:
                gap, first = await take(response, 2)
                assert (gap.event, gap.data["oldest"], first.id) == ("gap", 3, "3")


async def test_every_event_arrives_exactly_once_across_reconnects_at_random_points(doors: Doors) -> None:
    """Twelve readers break off and resume at random while events are written in bursts."""
    session = await idle(doors)
    child = await idle(doors, parent=session)
    random.seed(20261122)
    total = 400
    done = trio.Event()
    written: list[str] = []

    async def write() -> None:
        while len(written) < total:
            for _ in range(random.choice((1, 1, 3, 40))):
                text = f"n{len(written)}"
                written.append(text)
                await append(doors, random.choice((session, child)), message(text))
            await trio.sleep(random.choice((0, 0, 0.002, 0.01)))
        for one in (child, session):
            await doors.tool("session", action="end", session_id=one)
        done.set()

    async def read(seed: int, children: bool, whole: dict[int, list[tuple[str, int]]]) -> None:
        choose = random.Random(seed)
        seen: list[tuple[str, int]] = []
        cursor: str | None = None
        async with doors.client() as client:
            while True:
                headers = {"last-event-id": cursor} if cursor is not None else {}
                url = f"/v1/sessions/{session}/events" + ("?children=1" if children else "")
                async with client.stream("GET", url, headers=headers) as response:
                    if response.status_code == 204:
                        break
                    left = choose.choice((1, 2, 7, 60, 10_000))
                    ended = False
                    async for one in read_sse(response):
                        assert one.event not in ("gap", "dropped"), one
                        if one.event == "end":
                            ended = True
                            break
                        seen.append((one.data["session_id"], one.data["index"]))
                        cursor = one.id
                        left -= 1
                        if not left:
                            break
                if ended:
                    break
        whole[seed] = seen

    found: dict[int, list[tuple[str, int]]] = {}
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for seed in range(12):
                nursery.start_soon(read, seed, seed % 2 == 1, found)
            nursery.start_soon(write)
    own = [(event.session_id, event.index) for event in await doors.world.log(session)]
    tree = [
        (event.session_id, event.index)
        for event in await doors.world.store.read(
            partial(events.read_tree, root_id=session, session_ids=None, since_seq=-1, max_events=10_000)
        )
    ]
    assert len(own) + len(await doors.world.log(child)) == len(tree)
    for seed, seen in found.items():
        assert seen == (tree if seed % 2 else own), f"reader {seed}"


async def test_a_backlog_that_overflows_is_read_from_the_store_again(doors: Doors) -> None:
    session = await idle(doors)
    first = (await doors.world.row(session)).last_index
    shared = await shared_of(doors)
    args = StreamArgs(session, session, True, first, children=False, deltas=False)
    with trio.fail_after(30):
        async with session_stream(shared, Frames(), ADMIN, args) as chunks:
            assert (await chunks.receive()).startswith(b"retry")
            await append(doors, session, message("x"))
            head = await chunks.receive()
            for number in range(STREAM_BACKLOG_EVENTS + 50):
                await append(doors, session, message(str(number)))
            body = head
            while body.count(b"\nevent: ") < STREAM_BACKLOG_EVENTS + 51:
                body += await chunks.receive()
    ids = [int(line[4:]) for line in body.decode().splitlines() if line.startswith("id: ")]
    assert ids == list(range(first + 1, first + STREAM_BACKLOG_EVENTS + 52))


async def shared_of(doors: Doors) -> Any:
    from oubliette.api.shared import Shared

    return Shared(doors.services)


async def test_a_quiet_stream_says_that_it_lives(doors: Doors) -> None:
    session = await idle(doors)
    shared = await shared_of(doors)
    args = StreamArgs(session, session, True, 10_000, children=False, deltas=False)
    with trio.fail_after(20):
        async with session_stream(shared, Frames(), ADMIN, args, comment_seconds=0.05) as chunks:
            first = await chunks.receive()
            assert b"event: gap" in first
            assert [await chunks.receive() for _ in range(3)] == [b":\n\n"] * 3


async def test_a_quiet_subtree_says_that_it_lives_while_the_rest_of_its_tree_is_busy(doors: Doors) -> None:
    root = await idle(doors)
    quiet, busy = [await idle(doors, root) for _ in range(2)]
    shared = await shared_of(doors)
    args = StreamArgs(quiet, root, False, 10_000, children=True, deltas=False)

    async def chatter(stop: trio.Event) -> None:
        while not stop.is_set():
            await append(doors, busy, message("x"))
            await trio.sleep(0.01)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            stop = trio.Event()
            nursery.start_soon(chatter, stop)
            async with session_stream(shared, Frames(), ADMIN, args, comment_seconds=0.2) as chunks:
                assert b"event: gap" in await chunks.receive()
                assert [await chunks.receive() for _ in range(3)] == [b":\n\n"] * 3
            stop.set()


async def test_a_client_that_takes_nothing_for_long_is_told_and_dropped(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "DROP_SECONDS", 0.2)
    session = await idle(doors)
    shared = await shared_of(doors)
    args = StreamArgs(session, session, True, None, children=False, deltas=False)
    with trio.fail_after(20):
        async with session_stream(shared, Frames(), ADMIN, args) as chunks:
            await chunks.receive()
            await chunks.receive()
            await trio.sleep(0.4)
            dropped = await chunks.receive()
            assert dropped.startswith(b"event: dropped\n")
            with pytest.raises(trio.EndOfChannel):
                await chunks.receive()


async def test_a_reader_that_never_reads_holds_up_nobody(doors: Doors) -> None:
    session = await idle(doors)
    host, port = doors.url.removeprefix("http://").split(":")
    request = f"GET /v1/sessions/{session}/events HTTP/1.1\r\nHost: {host}\r\n"
    request += f"Authorization: Bearer {doors.secrets['admin']}\r\n\r\n"
    with trio.fail_after(60):
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await sock.connect((host, int(port)))
        async with trio.SocketStream(sock) as stuck:
            await stuck.send_all(request.encode())
            async with doors.client() as client:
                async with client.stream("GET", f"/v1/sessions/{session}/events") as response:
                    reader = read_sse(response)
                    for number in range(300):
                        await append(doors, session, message("x" * 10_000))
                        while (await anext(reader)).data.get("index") != (await doors.world.row(session)).last_index:
                            pass
                        assert number < 300
                assert (await client.get("/health")).status_code == 200


async def test_previews_are_only_for_those_who_asked_and_have_no_id(doors: Doors) -> None:
    root = await idle(doors)
    child = await idle(doors, parent=root)
    with trio.fail_after(20):
        async with doors.client() as client:
            for query, wanted in (("?deltas=1", [root]), ("?deltas=1&children=1", [root, child]), ("?children=1", [])):
                since = (
                    (await doors.world.row(root)).last_seq
                    if "children" in query
                    else (await doors.world.row(root)).last_index
                )
                async with client.stream("GET", f"/v1/sessions/{root}/events{query}&since={since}") as response:
                    reader = read_sse(response)
                    await append(doors, root, message("sync"))
                    assert (await anext(reader)).data["text"] == "sync"
                    for number, one in enumerate((root, child)):
                        doors.world.feed.publish_delta(one, 2, AgentDelta(f"prt_{number}", "text", 7, "ab"))
                    await append(doors, root, message("after"))
                    got: list[Sse] = []
                    while not got or got[-1].data.get("text") != "after":
                        got.append(await anext(reader))
                    deltas = got[:-1]
                    assert [one.data["session_id"] for one in deltas] == wanted
                    assert all(one.id is None and one.event == "delta" for one in deltas)
                    assert all(one.data["kind"] == "text" and one.data["offset"] == 7 for one in deltas)


async def test_a_token_has_so_many_streams_and_no_more(doors: Doors) -> None:
    session = await idle(doors)
    with trio.fail_after(60):
        async with doors.client("reader") as client, trio.open_nursery() as nursery:
            opened = 0
            all_open, let_go = trio.Event(), trio.Event()

            async def hold() -> None:
                nonlocal opened
                async with client.stream("GET", f"/v1/sessions/{session}/events") as response:
                    reader = read_sse(response)
                    await anext(reader)
                    opened += 1
                    if opened == STREAMS_PER_TOKEN:
                        all_open.set()
                    await let_go.wait()

            for _ in range(STREAMS_PER_TOKEN):
                nursery.start_soon(hold)
            await all_open.wait()
            for path in (f"/v1/sessions/{session}/events", "/v1/events"):
                refused = await client.get(path)
                assert refused.status_code == 409
                assert refused.json()["error"]["limit"]["name"] == "streams_per_token"
            async with doors.client("admin") as other, other.stream("GET", "/v1/events") as response:
                assert response.status_code == 200
            let_go.set()


async def test_an_event_is_sent_in_at_most_64_kib(doors: Doors) -> None:
    session = await idle(doors)
    big = {"name": "bash", "output": "€" * 200_000, "input": {"command": "y" * 50_000}}
    row = await append(doors, session, NewEvent(EventType.TOOL_RESULT, 1, {"part": "p", "tool": big}))
    shape = sent_shape(row)
    assert shape["tool"]["output_truncated"] is True
    assert shape["tool"]["output_bytes"] > 500_000
    with trio.fail_after(20):
        url = f"/v1/sessions/{session}/events?since={row.index - 1}"
        async with doors.client() as client, client.stream("GET", url) as response:
            one = (await take(response, 1))[0]
            assert one.data == shape
            assert len(str(one.data).encode()) < EVENT_SENT_BYTES * 1.1


def test_frames_are_made_once_and_forgotten_in_the_end() -> None:
    frames = Frames()
    at = __import__("datetime").datetime.now(__import__("datetime").UTC)
    row = EventRow("s", "s", PROJECT, 0, 0, at, EventType.MESSAGE, 1, {"text": "x"})
    assert frames.event(row, "index") is frames.event(row, "index")
    assert frames.event(row, "seq") != b""
    for number in range(1, 2000):
        frames.event(
            EventRow("s", "s", PROJECT, number, number, at, EventType.MESSAGE, 1, {"text": "x" * 20_000}), "index"
        )
    assert sum(len(one) for one in [*frames._new.values(), *frames._old.values()]) < 18 << 20


def test_pieces_are_few_and_not_large() -> None:
    frames = [b"x" * 100] * 2000 + [b"y" * 200_000] + [b"z"] * 3
    made = list(pieces(frames))
    assert b"".join(made) == b"".join(frames)
    assert max(len(one) for one in made if b"y" not in one) <= 64 << 10
    assert len(made) == 6
    assert list(pieces([])) == []


async def test_sessions_that_end_while_nobody_looks_still_end_the_stream(tmp_path: Path) -> None:
    async with open_doors(tmp_path) as doors:
        session = await idle(doors)
        with trio.fail_after(20):
            url = f"/v1/sessions/{session}/events?children=1"
            async with doors.client() as client, client.stream("GET", url) as response:
                reader = read_sse(response)
                await anext(reader)
                await doors.tool("session", action="cancel", session_id=session)
                kinds = [one.event async for one in reader]
                assert kinds[-1] == "end"
        row = await doors.world.store.read(partial(sessions.get, session_id=session))
        assert row is not None
        assert not row.open
