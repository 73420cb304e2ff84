"""Serving: where it listens, how it ends, and what clients cannot do to it."""

from __future__ import annotations

import importlib.metadata
import os
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from oubliette.api import serve
from oubliette.api.serve import serve_http
from oubliette.config import Config
from oubliette.errors import OublietteError
from tests.api.rpc import open_rpc
from tests.api.world import Doors, open_doors, read_sse


async def hello(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/flood":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
    if scope["path"] == "/slow":
        await trio.sleep(60)
    if scope["path"] == "/crash":
        raise ExceptionGroup("oops", [ValueError("bad")])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


async def serving(
    nursery: trio.Nursery, shutdown: trio.Event, ended: list[float] | None = None, **server: Any
) -> list[str]:
    config = Config.model_validate({"server": {"address": "127.0.0.1:0", **server}}, strict=False).server

    async def run(task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED) -> None:
        await serve_http(hello, config, shutdown=shutdown, closing=lambda: None, task_status=task_status)
        if ended is not None:
            ended.append(trio.current_time())

    addresses: list[str] = await nursery.start(run)
    return addresses


def where(address: str) -> tuple[str, int]:
    host, _, port = address.partition("://")[2].rpartition(":")
    return host, int(port)


async def test_an_idle_server_ends_at_once(tmp_path: Path) -> None:
    shutdown = trio.Event()
    ended: list[float] = []
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            addresses = await serving(nursery, shutdown, ended)
            async with httpx.AsyncClient(trust_env=False, verify=False) as client:
                assert (await client.get(addresses[0])).text == "hello"
                asked = trio.current_time()
                shutdown.set()  # with a connection kept alive
    assert ended[0] - asked < 0.5


@pytest.mark.parametrize("path", ["/flood", "/slow"])
async def test_clients_that_never_read_and_handlers_that_never_end_hold_up_nothing(path: str) -> None:
    shutdown = trio.Event()
    ended: list[float] = []
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            host, port = where((await serving(nursery, shutdown, ended))[0])
            sock = trio.socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await sock.connect((host, port))
            await sock.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await trio.sleep(0.5)
            asked = trio.current_time()
            shutdown.set()
    sock.close()
    assert ended[0] - asked < 3


async def test_shutdown_with_open_streams_and_waiting_calls_takes_less_than_three_seconds(tmp_path: Path) -> None:
    with trio.fail_after(30):
        async with open_doors(tmp_path) as doors:
            session = await doors.world.new("sleep")
            kinds: list[str] = []
            opened = 0
            all_open = trio.Event()

            def count() -> None:
                nonlocal opened
                opened += 1
                if opened == 8:
                    all_open.set()

            async def stream(path: str) -> None:
                async with doors.client() as client, client.stream("GET", path) as response:
                    count()
                    kinds.extend([one.event async for one in read_sse(response)])
                kinds.append("clean")

            async def get_stream() -> None:
                async with open_rpc(doors) as rpc:
                    headers = {**rpc.headers("x"), "accept": "text/event-stream"}
                    async with rpc.http.stream("GET", "/mcp", headers=headers) as response:
                        count()
                        async for _ in response.aiter_raw():
                            pass
                kinds.append("clean")

            async def wait() -> None:
                count()
                answer = await doors.call("session", action="wait", session_id=session)
                kinds.append(f"wait {answer.status_code}")

            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(stream, f"/v1/sessions/{session}/events")
                nursery.start_soon(stream, "/v1/events")
                nursery.start_soon(get_stream)
                nursery.start_soon(wait)
                await all_open.wait()
                await trio.sleep(0.3)
                asked = trio.current_time()
                doors.shutdown.set()
                await doors.served.wait()
                assert trio.current_time() - asked < 3
            assert kinds.count("clean") == 7, "every stream ended as it should"
            assert "wait 200" in kinds


async def test_the_unix_socket_is_for_this_user_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    shutdown = trio.Event()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            addresses = await serving(nursery, shutdown, unix_socket=path)
            assert addresses[1] == f"unix:{path}"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            transport = httpx.AsyncHTTPTransport(uds=str(path), verify=False)
            async with httpx.AsyncClient(transport=transport) as client:
                assert (await client.get("http://anything/")).text == "hello"
            with pytest.RaisesGroup(OublietteError, flatten_subgroups=True):
                async with trio.open_nursery() as inner:
                    await serving(inner, trio.Event(), unix_socket=path)
            shutdown.set()
    assert not path.exists()


async def test_what_cannot_be_listened_on_is_said_with_what_to_do(tmp_path: Path) -> None:
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    plain = tmp_path / "file"
    plain.write_text("x")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"address": f"127.0.0.1:{taken.getsockname()[1]}"}, "server.address"),
        ({"address": "192.0.2.1:1"}, "server.address"),
        ({"unix_socket": plain}, "server.unix_socket"),
        ({"unix_socket": tmp_path / ("x" * 120)}, "server.unix_socket"),
    ]
    with trio.fail_after(20):
        for server, word in cases:
            config = Config.model_validate({"server": {"address": "127.0.0.1:0", **server}}).server
            with pytest.raises(OublietteError) as caught:
                await serve_http(hello, config, shutdown=trio.Event(), closing=lambda: None)
            assert word in caught.value.hint
    taken.close()
    assert plain.read_text() == "x"


async def test_https_is_served_with_the_configured_certificate(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    make += ["-keyout", str(key), "-out", str(cert)]
    await trio.to_thread.run_sync(lambda: subprocess.run(make, check=True, capture_output=True))
    shutdown = trio.Event()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            addresses = await serving(nursery, shutdown, tls={"cert": cert, "key": key})
            assert addresses[0].startswith("https://127.0.0.1:")
            async with httpx.AsyncClient(verify=False, trust_env=False) as client:
                assert (await client.get(addresses[0])).text == "hello"
            shutdown.set()


async def raw(address: str, *pieces: bytes, wait: float = 5) -> bytes:
    stream = await trio.open_tcp_stream(*where(address))
    answer = b""
    async with stream:
        for piece in pieces:
            await stream.send_all(piece)
        with trio.move_on_after(wait):
            while chunk := await stream.receive_some():
                answer += chunk
    return answer


async def test_bad_http_ends_its_connection_and_nothing_else() -> None:
    shutdown = trio.Event()
    big = b"GET / HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * (200 << 10) + b"\r\n\r\n"
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            address = (await serving(nursery, shutdown))[0]
            assert b" 400 " in await raw(address, b"\x00\xff\x00\xff\r\n\r\n")
            assert b" 431 " in await raw(address, big)
            assert b" 500 " in await raw(address, b"GET /crash HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            smuggled = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc"
            assert b" 400 " in await raw(address, smuggled)
            async with httpx.AsyncClient(trust_env=False, verify=False) as client:
                assert (await client.get(address)).text == "hello"
            shutdown.set()


async def test_headers_that_do_not_arrive_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HEADER_SECONDS", 0.3)
    shutdown = trio.Event()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            address = (await serving(nursery, shutdown))[0]
            started = trio.current_time()
            assert await raw(address, b"GET / HTTP/1.1\r\nHost:") == b""
            assert trio.current_time() - started < 2
            shutdown.set()


async def test_there_are_only_so_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MAX_CONNECTIONS", 2)
    shutdown = trio.Event()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            address = (await serving(nursery, shutdown))[0]
            async with await trio.open_tcp_stream(*where(address)), await trio.open_tcp_stream(*where(address)):
                await trio.sleep(0.1)
                assert await raw(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == b""
            await trio.sleep(0.1)
            assert b"hello" in await raw(address, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            shutdown.set()


async def test_a_client_that_stops_reading_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "SEND_SECONDS", 0.3)
    gone = trio.Event()

    async def flood(scope: Any, receive: Any, send: Any) -> None:
        try:
            await hello({**scope, "path": "/flood"}, receive, send)
        finally:
            gone.set()

    shutdown = trio.Event()
    config = Config.model_validate({"server": {"address": "127.0.0.1:0"}}).server
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:

            async def run(task_status: trio.TaskStatus[list[str]]) -> None:
                await serve_http(flood, config, shutdown=shutdown, closing=lambda: None, task_status=task_status)

            address = (await nursery.start(run))[0]
            sock = trio.socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await sock.connect(where(address))
            await sock.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            started = trio.current_time()
            await trio.sleep(0.6)
            sock.close()
            shutdown.set()
            await gone.wait()
            assert trio.current_time() - started < 5


def test_hypercorn_is_the_one_that_we_looked_into() -> None:
    assert importlib.metadata.version("hypercorn") == serve.HYPERCORN


async def test_headers_have_a_limit(doors: Doors) -> None:
    with trio.fail_after(10):
        async with doors.client() as client:
            answer = await client.get("/health", headers={"x-big": "a" * (33 << 10)})
            assert (answer.status_code, answer.json()["error"]["code"]) == (431, "too_large")


async def test_the_server_says_nothing_about_itself(doors: Doors) -> None:
    with trio.fail_after(10):
        async with doors.client() as client:
            answer = await client.get("/health")
            assert "server" not in answer.headers


async def test_opening_and_closing_fifty_times_leaks_no_descriptor() -> None:
    async def once() -> None:
        shutdown = trio.Event()
        async with trio.open_nursery() as nursery:
            address = (await serving(nursery, shutdown))[0]
            async with httpx.AsyncClient(trust_env=False, verify=False) as client:
                await client.get(address)
            shutdown.set()

    with trio.fail_after(60):
        await once()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            await once()
        assert len(os.listdir("/proc/self/fd")) <= before
