"""What goes on in a principal's name: limits and ends, without a server."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from oubliette.api.live import Live, Origin
from oubliette.core.limits import STREAMS_IN_ALL, STREAMS_PER_TOKEN
from oubliette.core.principals import Principal, Scope
from oubliette.errors import RequestError

ADMIN = Principal("token", "tok_a", "admin", Scope("admin"))


async def test_waiting_calls_are_limited_and_orphans_make_room() -> None:
    live = Live()
    evicted: list[str] = []
    release = trio.Event()
    origins = [Origin(ADMIN, f"r{n}") for n in range(50)]

    async def hold(origin: Origin) -> None:
        try:
            with live.call(ADMIN, origin):
                await release.wait()
        except RequestError as error:
            evicted.append(f"{origin.request_id} {error.code}")

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for origin in origins:
                nursery.start_soon(hold, origin)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(RequestError, match="50 calls"), live.call(ADMIN, Origin(ADMIN, "late")):
                pass
            origins[7].gone = True
            with live.call(ADMIN, Origin(ADMIN, "later")):
                await trio.testing.wait_all_tasks_blocked()
                assert evicted == ["r7 cancelled"]
            release.set()
    assert live.principals() == set()


async def test_the_end_of_a_principal_reaches_its_calls_and_streams_and_nobody_elses() -> None:
    live = Live()
    told: list[str] = []
    live.on_end = told.append
    ended: list[str] = []

    async def call(principal: Principal) -> None:
        try:
            with live.call(principal):
                await release.wait()
            ended.append(f"{principal.id} done")
        except RequestError as error:
            ended.append(f"{principal.id} {error.code}")

    async def stream() -> None:
        with live.stream(ADMIN):
            await release.wait()
        ended.append("stream over")

    release = trio.Event()
    other = Principal("token", "tok_b", "b", Scope("admin"))
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for principal in (ADMIN, other):
                nursery.start_soon(call, principal)
            nursery.start_soon(stream)
            await trio.testing.wait_all_tasks_blocked()
            live.end_principal("tok_a")
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(ended) == ["stream over", "tok_a unauthenticated"]
            assert told == ["tok_a"]
            release.set()
    assert ended[-1] == "tok_b done"


async def test_the_end_of_a_protocol_session_ends_its_calls() -> None:
    live = Live()
    mine = Origin(ADMIN, "r", protocol_session="s1")
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                live.end_protocol_session("s2", ADMIN.id)
                live.end_protocol_session("s1", "tok_b")
                await trio.testing.wait_all_tasks_blocked()
                refused_to_others.append(True)
                live.end_protocol_session("s1", ADMIN.id)

            refused_to_others: list[bool] = []
            nursery.start_soon(end)
            with pytest.raises(RequestError, match="protocol session was ended"), live.call(ADMIN, mine):
                await trio.sleep_forever()
            assert refused_to_others


async def test_streams_are_limited_for_each_and_for_all() -> None:
    live = Live()
    held = []
    for number in range(STREAMS_IN_ALL):
        principal = Principal("token", f"tok_{number // STREAMS_PER_TOKEN}", "x", Scope("admin"))
        held.append(live.stream(principal))
        held[-1].__enter__()
    with pytest.raises(RequestError, match=r"20 event streams .* of one token"):
        live.check_stream_room(principal)
    with pytest.raises(RequestError, match=r"500 event streams"):
        live.check_stream_room(ADMIN)
    for one in reversed(held):
        one.__exit__(None, None, None)
    live.check_stream_room(ADMIN)
