"""A tree's events as one list: by cursor through the tool, by ``children=1`` through a stream."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette.api.tools import session_events
from oubliette.core.model import EventRow, EventType, Json, NewEvent
from oubliette.core.shapes import EventsResult
from oubliette.session import merged_views
from oubliette.store import events
from tests.api.agent_world import open_agents
from tests.api.world import Doors, Sse, read_sse

TYPES = (EventType.MESSAGE, EventType.REASONING)


def said(text: str, kind: EventType = EventType.MESSAGE) -> NewEvent:
    return NewEvent(kind, 1, {"part": "p", "role": "assistant", "text": text})


async def append(doors: Doors, session: str, text: str, kind: EventType = EventType.MESSAGE) -> EventRow:
    row = await doors.world.store.write(partial(events.append, session_id=session, event=said(text, kind)))
    assert row is not None
    return row


async def idle(doors: Doors, parent: str | None = None) -> str:
    session = await doors.world.new("say hello", parent=parent)
    await doors.world.settle(session)
    return session


async def tree_log(doors: Doors, root: str) -> list[EventRow]:
    read = partial(events.read_tree, root_id=root, session_ids=None, since_seq=-1, max_events=100_000)
    return await doors.world.store.read(read)


async def merged(doors: Doors, session: str, who: str = "reader", **more: Any) -> Json:
    page = await doors.tool("session", who, action="events", session_id=session, include_children=True, **more)
    EventsResult.model_validate(page)
    return page


async def test_merged_reads_by_cursor_hold_every_event_once_while_others_write(doors: Doors) -> None:
    """Readers of the whole tree, of a part of it, of some types; page sizes and pauses at random, new children too."""
    root = await idle(doors)
    child = await idle(doors, parent=root)
    grandchild = await idle(doors, parent=child)
    other = await idle(doors, parent=root)
    below = {child, grandchild}
    chance = random.Random(20261123)
    written = trio.Event()

    async def write(own: list[str]) -> None:
        for number in range(60):
            for _ in range(chance.choice((1, 1, 2, 9))):
                await append(doors, chance.choice(own), f"n{number}", chance.choice(TYPES))
            if number == 20:
                late = await doors.world.new("say late", parent=chance.choice(own))
                own.append(late)
                if own[0] in below:
                    below.add(late)
            await trio.sleep(chance.choice((0, 0, 0.003)))

    async def write_all() -> None:
        async with trio.open_nursery() as writers:
            writers.start_soon(write, [root, other])
            writers.start_soon(write, [child, grandchild])
        written.set()

    async def read(session: str, types: list[str] | None, found: list[tuple[int, str, int]]) -> None:
        cursor: str | None = None
        while True:
            last = written.is_set()
            more = {"cursor": cursor} if cursor is not None else {}
            page = await merged(
                doors,
                session,
                max_events=chance.choice((1, 5, 40, 1000)),
                wait_seconds=chance.choice((0, 0.05)),
                types=types,
                max_chars=1_000_000,
                **more,
            )
            found += [(one["seq"], one["session_id"], one["index"]) for one in page["events"]]
            cursor = page["cursor"]
            if last and not page["events"] and not page["more"]:
                return

    readers: list[tuple[str, list[str] | None]] = [
        (root, None),
        (root, ["message"]),
        (child, None),
        (child, ["reasoning"]),
    ]
    found: list[list[tuple[int, str, int]]] = [[] for _ in readers]
    with trio.fail_after(90):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_all)
            for (session, types), seen in zip(readers, found, strict=True):
                nursery.start_soon(read, session, types, seen)
    log = await tree_log(doors, root)
    assert [event.seq for event in log] == list(range(len(log))), "seq has no holes"
    assert len(below) == 3
    for (session, types), seen in zip(readers, found, strict=True):
        wanted = [
            (event.seq, event.session_id, event.index)
            for event in log
            if (session == root or event.session_id in below) and (types is None or event.type.value in types)
        ]
        assert seen == wanted, (session, types)


async def test_without_a_cursor_it_begins_behind_the_sessions_own_index(doors: Doors) -> None:
    with trio.fail_after(20):
        root = await idle(doors)
        child = await idle(doors, parent=root)
        mark = await append(doors, child, "mark")
        after = [await append(doors, one, "after") for one in (root, child)]
        wanted = [event.seq for event in after]
        page = await merged(doors, child, since_index=mark.index)
        assert [one["seq"] for one in page["events"]] == wanted[1:]
        page = await merged(doors, root, since_index=after[0].index)
        assert [one["seq"] for one in page["events"]] == wanted[1:]
        for one in (root, child):
            page = await merged(doors, one, since_index=10_000)
            assert (page["events"], page["more"]) == ([], False), "ahead of the log is its end"
            new = await append(doors, one, "new")
            page = await merged(doors, one, cursor=page["cursor"])
            assert [event["seq"] for event in page["events"]] == [new.seq]


async def test_what_was_purged_before_the_page_is_counted(doors: Doors) -> None:
    with trio.fail_after(20):
        root = await idle(doors)
        child = await idle(doors, parent=root)
        first = await merged(doors, root, max_events=1)
        assert first["dropped_events"] == 0
        await doors.world.store.write(lambda tx: tx.run("DELETE FROM events WHERE seq < 5"))
        page = await merged(doors, root)
        assert (page["events"][0]["seq"], page["dropped_events"]) == (5, 5)
        assert (await merged(doors, root, cursor=first["cursor"]))["dropped_events"] == 4
        assert "dropped_events" not in await merged(doors, child)


async def test_a_cursor_is_bound_to_session_types_and_principal(doors: Doors) -> None:
    with trio.fail_after(20):
        root = await idle(doors)
        child = await idle(doors, parent=root)
        cursor = (await merged(doors, root, max_events=1))["cursor"]
        assert (await merged(doors, root, cursor=cursor))["events"]
        without = await doors.tool("session", "reader", action="events", session_id=root, cursor=cursor)
        assert without["events"], "a cursor says that the children are meant"
        others: tuple[Json, ...] = (
            {"who": "project", "session_id": root},
            {"who": "reader", "session_id": child},
            {"who": "reader", "session_id": root, "types": ["message"]},
        )
        for other in others:
            refused = await doors.call("session", action="events", include_children=True, cursor=cursor, **other)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_cursor"), other


async def test_a_long_poll_answers_with_the_first_news_of_anybody_below(doors: Doors) -> None:
    with trio.fail_after(20):
        root = await idle(doors)
        child = await idle(doors, parent=root)
        cursor = (await merged(doors, root, max_chars=1_000_000))["cursor"]
        pages: list[Json] = []

        async def poll(types: list[str] | None, cursor: str) -> None:
            pages.append(await merged(doors, root, cursor=cursor, wait_seconds=15, types=types))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(poll, None, cursor)
            while not doors.world.feed._subscriptions:
                await trio.sleep(0.01)
            await append(doors, child, "news")
        assert [one["text"] for one in pages[0]["events"]] == ["news"]
        before = trio.current_time()
        assert (await merged(doors, root, cursor=pages[0]["cursor"], wait_seconds=0.3))["events"] == []
        assert trio.current_time() - before > 0.25, "a time-out is a result"


async def test_a_long_poll_does_not_wait_for_a_tree_that_has_ended_but_for_one_that_goes_on(doors: Doors) -> None:
    with trio.fail_after(20):
        root = await idle(doors)
        apart = await doors.world.new("sleep", parent=root, detach=True)
        await doors.world.until(apart, "running")
        await doors.tool("session", action="end", session_id=root)
        cursor = (await merged(doors, root, max_chars=1_000_000))["cursor"]
        pages: list[Json] = []

        async def poll() -> None:
            pages.append(await merged(doors, root, cursor=cursor, wait_seconds=15))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(poll)
            while not doors.world.feed._subscriptions:
                await trio.sleep(0.01)
            await append(doors, apart, "still here")
        assert pages[0]["events"][0]["text"] == "still here"
        assert "next" in pages[0]
        await doors.tool("session", action="cancel", session_id=apart)
        end = await merged(doors, root, max_chars=1_000_000, cursor=pages[0]["cursor"])
        over = await merged(doors, root, cursor=end["cursor"], wait_seconds=15)
        assert (over["events"], "next" in over) == ([], False)


async def test_a_long_poll_of_a_quiet_branch_is_not_kept_busy_by_the_rest_of_its_tree(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = await idle(doors)
    quiet, busy = [await idle(doors, parent=root) for _ in range(2)]
    cursor = (await merged(doors, quiet, max_chars=1_000_000))["cursor"]
    looks = 0

    def look(*args: Any) -> Json:
        nonlocal looks
        looks += 1
        return real(*args)

    real = merged_views.merged_result
    monkeypatch.setattr(merged_views, "merged_result", look)
    pages: list[Json] = []

    async def poll() -> None:
        pages.append(await merged(doors, quiet, cursor=cursor, wait_seconds=15))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poll)
            while not doors.world.feed._subscriptions:
                await trio.sleep(0.01)
            began = trio.current_time()
            for number in range(100):
                await append(doors, busy, str(number))
            await append(doors, quiet, "news")
        took = trio.current_time() - began
    assert [one["text"] for one in pages[0]["events"]] == ["news"]
    assert looks <= took / session_events.PAUSE_SECONDS + 4


async def test_an_agent_reads_its_own_part_of_the_tree_merged(tmp_path: Path) -> None:
    async with open_agents(tmp_path) as agents, agents.wire() as wire:
        root, stamp = await agents.session()
        child = (await wire.result(stamp, action="spawn", message="sleep"))["session_id"]
        _, child_stamp = await agents.at_work(child)
        grandchild = (await wire.result(child_stamp, action="spawn", message="say hi"))["session_id"]
        sibling = (await wire.result(stamp, action="spawn", message="say hi"))["session_id"]
        await agents.doors.world.settle(grandchild, sibling)
        both = {"action": "events", "include_children": True, "max_chars": 500_000}
        mine = await wire.result(child_stamp, session_id=child, **both)
        assert {one["session_id"] for one in mine["events"]} == {child, grandchild}
        whole = await wire.result(stamp, session_id=root, **both)
        assert {one["session_id"] for one in whole["events"]} == {root, child, grandchild, sibling}
        assert [one["seq"] for one in whole["events"]] == list(range(len(whole["events"])))
        for one in (root, sibling):
            failed, text = await wire.call("session", child_stamp, session_id=one, **both)
            assert failed
            assert text.startswith("not_found: ")
        failed, text = await wire.call(
            "session", child_stamp, session_id=child, cursor=whole["cursor"], action="events"
        )
        assert failed
        assert text.startswith("invalid_cursor: ")


# --- the stream


async def stream(doors: Doors, session: str, number: int, headers: dict[str, str] | None = None) -> list[Sse]:
    found: list[Sse] = []
    url = f"/v1/sessions/{session}/events?children=1"
    async with doors.client("reader") as client, client.stream("GET", url, headers=headers or {}) as response:
        reader = read_sse(response)
        while len(found) < number:
            found.append(await anext(reader))
    return found


async def test_a_trees_stream_resumes_at_last_event_id_whichever_part_of_it_is_asked_for(doors: Doors) -> None:
    with trio.fail_after(30):
        root = await idle(doors)
        child = await idle(doors, parent=root)
        other = await idle(doors, parent=root)
        for number in range(20):
            await append(doors, (root, child, other)[number % 3], f"n{number}")
        log = await tree_log(doors, root)
        for session, wanted in ((root, log), (child, [event for event in log if event.session_id == child])):
            half = len(wanted) // 2
            first = await stream(doors, session, half)
            rest = await stream(doors, session, len(wanted) - half, {"last-event-id": first[-1].id or ""})
            assert [int(one.id or -1) for one in first + rest] == [event.seq for event in wanted]
            assert [one.data["session_id"] for one in first + rest] == [event.session_id for event in wanted]


async def test_a_trees_stream_outside_of_its_log_begins_with_a_gap(doors: Doors) -> None:
    with trio.fail_after(30):
        root = await idle(doors)
        child = await idle(doors, parent=root)
        newest = (await doors.world.row(root)).last_seq
        for session in (root, child):
            [gap] = await stream(doors, session, 1, {"last-event-id": str(newest + 9)})
            assert (gap.event, gap.data["since"], gap.data["at"]) == ("gap", newest + 9, newest)
        await doors.world.store.write(lambda tx: tx.run("DELETE FROM events WHERE seq < 4"))
        for session in (root, child):
            gap, first = await stream(doors, session, 2, {"last-event-id": "0"})
            assert (gap.event, gap.data["oldest"]) == ("gap", 4)
            kept = [event.seq for event in await tree_log(doors, root) if session in (root, event.session_id)]
            assert first.id == str(kept[0])


async def test_a_trees_stream_ends_when_the_last_session_of_it_has_ended(doors: Doors) -> None:
    with trio.fail_after(30):
        root = await idle(doors)
        apart = await doors.world.new("sleep", parent=root, detach=True)
        await doors.world.until(apart, "running")
        await doors.tool("session", action="end", session_id=root)
        kinds: list[str] = []
        async with doors.client("reader") as client:
            async with client.stream("GET", f"/v1/sessions/{root}/events?children=1") as response:
                async for one in read_sse(response):
                    kinds.append(one.event)
                    to = one.data["status"]["to"] if one.event == "status" else None
                    if (one.data.get("session_id"), to) == (root, "completed"):
                        await doors.tool("session", action="cancel", session_id=apart)
            last = (await doors.world.row(root)).last_seq
            again = await client.get(f"/v1/sessions/{root}/events?children=1", headers={"last-event-id": str(last)})
        assert kinds[-1] == "end"
        assert len(kinds) == last + 2
        assert (again.status_code, again.content) == (204, b"")
