"""Who may come in, and how long they may stay."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing

from oubliette import clock
from oubliette.api import auth as auth_module
from oubliette.api.api import open_api
from oubliette.api.auth import RateLimiter
from oubliette.core.model import Json
from oubliette.store import tokens
from tests.api.rpc import messages, open_rpc
from tests.api.world import PROJECT, Doors, eventually, open_doors, read_sse

SECRET = "oub_" + "0" * 64


async def get(doors: Doors, path: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=doors.url, trust_env=False, verify=False) as client:
        return await client.get(path, headers=headers)


@pytest.mark.parametrize("path", ["/mcp", "/v1/events", "/v1/tools/session", "/metrics"])
async def test_without_a_good_token_there_is_a_401_that_says_how_to_get_one(doors: Doors, path: str) -> None:
    with trio.fail_after(20):
        for value in (None, "", "Bearer", "Bearer x", f"Basic {SECRET}", f"Bearer {SECRET} x", f"Bearer {SECRET}"):
            headers = {"authorization": value} if value is not None else {}
            if path == "/metrics":
                headers["x-forwarded-for"] = "10.0.0.1"
            await trio.sleep(0.21)  # five bad tokens a second are allowed
            answer = await get(doors, path, **headers)
            assert answer.status_code == 401, (value, answer.text)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            body = answer.json()
            assert (body["jsonrpc"], body["id"], body["error"]["code"]) == ("2.0", None, -32001)
            assert body["error"]["data"]["code"] == "unauthenticated"
            assert body["error"]["data"]["request_id"] == answer.headers["x-request-id"]


async def test_two_authorization_headers_are_one_too_many(doors: Doors) -> None:
    good = ("authorization", f"Bearer {doors.secrets['admin']}")
    with trio.fail_after(20):
        async with httpx.AsyncClient(base_url=doors.url, trust_env=False, verify=False) as client:
            assert (await client.get("/v1/nothing", headers=[good])).status_code == 404
            assert (await client.get("/v1/nothing", headers=[good, good])).status_code == 401


async def test_revoked_expired_and_agents_tokens_do_not_open_the_door(doors: Doors) -> None:
    await doors.add_token("old", "admin", expires_at=clock.now() - timedelta(seconds=1))
    await doors.add_token("inside", f"project:{PROJECT}", kind="agent")
    await doors.add_token("gone", "admin")
    with trio.fail_after(20):
        await doors.tool("token", action="revoke", token_id="gone")
        for name, word in (("old", "expired"), ("inside", "not known"), ("gone", "revoked")):
            answer = await get(doors, "/v1/events", **doors.headers(name))
            assert answer.status_code == 401
            assert word in answer.json()["error"]["message"]


async def test_a_token_that_is_revoked_by_another_process_is_refused_within_a_second(doors: Doors) -> None:
    await doors.add_token("brief", "admin")
    with trio.fail_after(20):
        assert (await doors.call("token", "brief", action="list")).status_code == 200
        await doors.world.store.write(partial(tokens.revoke, token_id="tok_api_brief", at=clock.now()))
        with trio.fail_after(1.5):
            call = partial(doors.call, "token", "brief", action="list")
            await eventually(call, lambda answer: answer.status_code == 401)


@pytest.mark.parametrize("how", ["through the tool", "by another process", "by expiry"])
async def test_the_end_of_a_token_ends_its_streams_and_calls_within_a_second(doors: Doors, how: str) -> None:
    expires = clock.now() + timedelta(seconds=1.5) if how == "by expiry" else None
    await doors.add_token("brief", "admin", expires_at=expires)
    session = await doors.world.new("sleep")
    ended: dict[str, object] = {}

    async def stream() -> None:
        async with (
            doors.client("brief") as client,
            client.stream("GET", f"/v1/sessions/{session}/events") as response,
        ):
            async for _ in read_sse(response):
                watching.set()
        ended["stream"] = trio.current_time()

    async def get_stream() -> None:
        async with open_rpc(doors, "brief") as rpc:
            got.set()
            headers = {**rpc.headers("get"), "accept": "text/event-stream"}
            try:
                async with rpc.http.stream("GET", "/mcp", headers=headers) as response:
                    async for _ in response.aiter_raw():
                        pass
            except httpx.RemoteProtocolError:
                pass
        ended["get"] = trio.current_time()

    async def wait(modern: bool) -> None:
        async with open_rpc(doors, "brief", modern=modern) as rpc:
            opened[modern].set()
            answer = await rpc.ask("tools/call", name="session", arguments={"action": "wait", "session_id": session})
            ended[f"wait {modern}"] = answer["error"]["code"]

    async def curl() -> None:
        answer = await doors.call("session", "brief", action="wait", session_id=session)
        ended["curl"] = answer.status_code

    watching, got = trio.Event(), trio.Event()
    opened = {True: trio.Event(), False: trio.Event()}
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream)
            nursery.start_soon(get_stream)
            for modern in (True, False):
                nursery.start_soon(wait, modern)
            nursery.start_soon(curl)
            for event in (watching, got, *opened.values()):
                await event.wait()
            await trio.sleep(0.3)
            if how == "through the tool":
                await doors.tool("token", action="revoke", name="brief")
            elif how == "by another process":
                await doors.world.store.write(partial(tokens.revoke, token_id="tok_api_brief", at=clock.now()))
            else:
                assert expires is not None
                await trio.sleep((expires - clock.now()).total_seconds())
            over = trio.current_time()
    assert set(ended) == {"stream", "get", "wait True", "wait False", "curl"}
    assert trio.current_time() - over < 1.5, "one second is promised"
    assert ended["wait True"] == ended["wait False"] == -32001
    assert ended["curl"] == 401


async def test_thousands_of_tokens_may_end_at_once_and_the_doors_stay_open(doors: Doors) -> None:
    async with open_api(doors.services) as api:
        for number in range(3_000):
            api.shared.live.end_principal(f"tok_{number}")
            api.shared.live.end_principal(f"tok_{number}")
        await trio.testing.wait_all_tasks_blocked()


async def test_a_token_may_revoke_itself_and_hears_that_it_did(doors: Doors) -> None:
    await doors.add_token("brief", "admin")
    with trio.fail_after(20):
        gone = await doors.tool("token", "brief", action="revoke", token_id="tok_api_brief")
        assert gone["revoked_at"]
        assert (await doors.call("token", "brief", action="list")).status_code == 401


async def test_many_bad_tokens_from_an_address_are_slowed_down_and_good_ones_are_not(doors: Doors) -> None:
    with trio.fail_after(20):
        async with doors.client() as client:
            assert (await client.post("/v1/tools/session", json={"action": "list"})).status_code == 200
            answers = []
            for number in range(15):
                bad = {"authorization": f"Bearer oub_{number:064x}"}
                answers.append(await client.get("/mcp", headers=bad))
            assert [answer.status_code for answer in answers[:5]] == [401] * 5
            slowed = answers[-1]
            assert slowed.status_code == 429
            assert slowed.json()["error"]["code"] == -32029
            assert int(slowed.headers["retry-after"]) >= 1
            assert (await client.post("/v1/tools/session", json={"action": "list"})).status_code == 200


async def test_a_token_that_calls_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    async with open_doors(tmp_path, server={"rate_limit": {"per_second": 2, "burst": 3}}) as doors:
        with trio.fail_after(20):
            async with doors.client("project") as client:
                answers = [await client.post("/v1/tools/session", json={"action": "list"}) for _ in range(6)]
                assert [a.status_code for a in answers][:3] == [200] * 3
                last = answers[-1]
                assert last.status_code == 429
                assert last.json()["error"]["code"] == -32029
                assert last.json()["error"]["data"]["retry_after_ms"] > 0
                assert last.headers["retry-after"] == "1"
            async with doors.client("admin") as client:  # on loopback, so exempt
                for _ in range(10):
                    assert (await client.post("/v1/tools/session", json={"action": "list"})).status_code == 200
                    forwarded = await client.get("/health", headers={"x-forwarded-for": "1.2.3.4"})
                    assert forwarded.status_code == 200


async def test_an_unknown_host_is_refused_with_the_key_to_set(doors: Doors) -> None:
    with trio.fail_after(20):
        for path in ("/health", "/mcp", "/v1/tools/session"):
            answer = await get(doors, path, **doors.headers(host="evil.example:8080"))
            assert answer.status_code == 403
            error = answer.json()["error"]
            text = error["message"] if path == "/mcp" else error["hint"]
            assert "server.allowed_hosts" in text
        for host in ("localhost:1", "127.0.0.1", "[::1]:80", "LOCALHOST"):
            assert (await get(doors, "/health", host=host)).status_code == 200, host


async def test_pages_of_other_sites_are_refused_with_the_key_to_set(tmp_path: Path) -> None:
    server = {"allowed_origins": ["https://tools.example.org"], "allowed_hosts": ["box.example.org"]}
    async with open_doors(tmp_path, server=server) as doors:
        with trio.fail_after(20):
            answer = await get(doors, "/health", origin="https://evil.example")
            assert answer.status_code == 403
            assert "server.allowed_origins" in answer.json()["error"]["hint"]
            assert (await get(doors, "/health", origin="null")).status_code == 403
            assert (await get(doors, "/health", origin="http://[")).status_code == 403
            same = {"host": "box.example.org:8080", "origin": "http://box.example.org:8080"}
            assert (await get(doors, "/health", **same)).status_code == 200
            allowed = await get(doors, "/health", origin="https://tools.example.org")
            assert allowed.headers["access-control-allow-origin"] == "https://tools.example.org"
            async with httpx.AsyncClient(base_url=doors.url, trust_env=False, verify=False) as client:
                preflight = await client.options("/mcp", headers={"origin": "https://tools.example.org"})
                assert preflight.status_code == 204
                assert "authorization" in preflight.headers["access-control-allow-headers"]


async def test_a_request_id_is_taken_or_made_and_always_given_back(doors: Doors) -> None:
    with trio.fail_after(20):
        assert (await get(doors, "/health", **{"x-request-id": "ci-41.a"})).headers["x-request-id"] == "ci-41.a"
        for bad in ("", "a b", "x" * 65, "-x", "a\x7f"):
            made = (await get(doors, "/health", **{"x-request-id": bad})).headers["x-request-id"]
            assert made != bad
            assert len(made) == 20
        error = (await get(doors, "/nothing", **{"x-request-id": "mine"})).json()["error"]
        assert error["request_id"] == "mine"


async def test_health_ready_and_well_known_need_no_token(doors: Doors) -> None:
    with trio.fail_after(20):
        assert (await get(doors, "/health")).json() == {"status": "ok"}
        assert (await get(doors, "/ready")).json() == {"status": "ready"}
        missing = await get(doors, "/.well-known/oauth-authorization-server")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "not_found"


async def test_ready_says_why_not(tmp_path: Path) -> None:
    async with open_doors(tmp_path, adjust=lambda s: replace(s, readiness=lambda: "disk_full")) as doors:
        with trio.fail_after(20):
            answer = await get(doors, "/ready")
            assert answer.status_code == 503
            assert answer.json() == {"status": "not ready", "reason": "disk_full"}


async def test_metrics_are_open_on_loopback_and_need_admin_behind_a_proxy(doors: Doors) -> None:
    with trio.fail_after(20):
        await doors.tool("session", action="list")
        answer = await get(doors, "/metrics")
        assert answer.status_code == 200
        assert 'oubliette_calls_total{action="session.list",code="ok"}' in answer.text
        proxied = {"x-forwarded-for": "10.1.1.1"}
        assert (await get(doors, "/metrics", **proxied)).status_code == 401
        assert (await get(doors, "/metrics", **doors.headers("auditor"), **proxied)).status_code == 200
        assert (await get(doors, "/metrics", **doors.headers("project"), **proxied)).status_code == 403


async def test_the_last_use_of_a_token_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_module, "TOUCH_SECONDS", 0)
    with trio.fail_after(20):
        async with open_doors(tmp_path) as doors:
            assert "last_used_at" in await eventually(partial(own_token, doors), lambda found: "last_used_at" in found)


async def own_token(doors: Doors) -> Json:
    found = (await doors.tool("token", action="list"))["tokens"]
    return next(one for one in found if one["name"] == "admin")


async def test_a_protocol_session_presented_with_another_token_is_not_found(doors: Doors) -> None:
    with trio.fail_after(20):
        async with open_rpc(doors, "project") as rpc:
            headers = {**rpc.headers("ping"), **doors.headers("admin")}
            answer = await rpc.http.post("/mcp", headers=headers, json=rpc.body("ping", {}))
            assert answer.status_code == 404
            assert messages(answer.text)[0]["error"]["message"] == "Session not found"
            assert (await rpc.ask("ping"))["result"] == {}


async def test_a_rate_limiter_refills_and_forgets(autojump_clock: trio.testing.MockClock) -> None:
    limiter = RateLimiter(10, 2)
    assert [limiter.take("a") for _ in range(2)] == [0, 0]
    assert limiter.take("a") == pytest.approx(0.1)
    assert limiter.empty("a")
    assert not limiter.empty("b")
    await trio.sleep(0.1)
    assert limiter.take("a") == 0
