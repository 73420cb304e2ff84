"""Calls to an engine, against a scripted one: what goes wrong on the way, and that it is told in our words."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from oubliette.errors import EngineError, ImageMissing, RuntimeUnavailable
from oubliette.runtime import images
from oubliette.runtime.base import Progress
from oubliette.runtime.docker import Docker
from oubliette.runtime.docker_api import EngineApi, EngineRefused
from oubliette.runtime.docker_endpoint import endpoint_from, negotiated
from oubliette.runtime.docker_exec import read_logs, run_exec
from tests.runtime.tls import certificates, tls_in_front_of

SECONDS = 20
Answer = Callable[[trio.SocketStream, str], Awaitable[None]]


class ScriptedEngine:
    """Answers each request line by the first route whose words are in it; ``asked`` has all of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[str] = []
        self.routes: list[tuple[str, Answer]] = [
            ("/version", json_answer(b'{"ApiVersion":"1.47","MinAPIVersion":"1.24"}'))
        ]
        self.open = 0
        self.closed = trio.Event()

    def on(self, words: str, answer: Answer) -> None:
        self.routes.insert(0, (words, answer))

    @property
    def environ(self) -> dict[str, str]:
        return {"DOCKER_HOST": f"unix://{self.path}"}

    @property
    def api(self) -> EngineApi:
        return EngineApi(self.environ)

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listener = trio.socket.socket(socket.AF_UNIX)
        await listener.bind(str(self.path))
        listener.listen(16)
        task_status.started()
        await trio.serve_listeners(self._handle, [trio.SocketListener(listener)])

    async def _handle(self, stream: trio.SocketStream) -> None:
        self.open += 1
        try:
            line = await self._request(stream)
            if line is None:
                return
            self.asked.append(line)
            for words, answer in self.routes:
                if words in line:
                    await answer(stream, line)
                    return
            await json_answer(b'{"message":"no such route"}', status="404 Not Found")(stream, line)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        finally:
            self.open -= 1
            if not self.open:
                self.closed.set()
                self.closed = trio.Event()
            await trio.aclose_forcefully(stream)

    async def _request(self, stream: trio.SocketStream) -> str | None:
        """Read one request, its body too: closing on unread bytes would reset the connection under the answer."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some()
            if not more:
                return None
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        while length and len(body) < int(length[1]):
            body += await stream.receive_some()
        return head.split(b"\r\n")[0].decode()

    async def all_closed(self) -> None:
        if self.open:
            await self.closed.wait()


def json_answer(body: bytes, *, status: str = "200 OK") -> Answer:
    async def answer(stream: trio.SocketStream, line: str) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nContent-Type: application/json\r\n\r\n"
        await stream.send_all(head.encode() + body)

    return answer


def raw_answer(data: bytes, *, then: Callable[[], Awaitable[None]] | None = None) -> Answer:
    async def answer(stream: trio.SocketStream, line: str) -> None:
        await stream.send_all(data)
        if then is not None:
            await then()

    return answer


def lines_answer(*lines: bytes, then: Callable[[], Awaitable[None]] | None = None) -> Answer:
    body = b"".join(b"%x\r\n%s\r\n" % (len(line), line) for line in lines)
    end = b"" if then else b"0\r\n\r\n"
    return raw_answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + end, then=then)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[ScriptedEngine]:
    scripted = ScriptedEngine(tmp_path / "e.sock")
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(scripted.serve)
            yield scripted
            nursery.cancel_scope.cancel("the test is over")


async def test_the_version_is_negotiated_once_and_used(engine: ScriptedEngine) -> None:
    engine.on("/info", json_answer(b"{}"))
    api = engine.api
    await api.call("GET", "/info", what="x")
    await api.call("GET", "/info", what="x")
    assert engine.asked == ["GET /version HTTP/1.1", "GET /v1.47/info HTTP/1.1", "GET /v1.47/info HTTP/1.1"]


@pytest.mark.parametrize(
    ("newest", "oldest", "spoken"),
    [("1.41", "1.12", "1.41"), ("1.47", "1.24", "1.47"), ("1.60", "1.44", "1.51"), ("2.0", "1.51", "1.51")],
)
def test_the_newest_version_that_both_know_is_spoken(newest: str, oldest: str, spoken: str) -> None:
    assert negotiated(newest, oldest) == spoken


@pytest.mark.parametrize(("newest", "oldest"), [("1.40", "1.12"), ("1.70", "1.60"), ("", ""), ("new", "")])
def test_an_engine_too_old_too_new_or_unclear_is_refused(newest: str, oldest: str) -> None:
    with pytest.raises(RuntimeUnavailable):
        negotiated(newest, oldest)


async def test_a_refusal_carries_the_engines_words_and_status(engine: ScriptedEngine) -> None:
    engine.on("/containers/x/start", json_answer(b'{"message":"no space left"}', status="500 Internal Server Error"))
    with pytest.raises(EngineRefused, match="start x: no space left") as refused:
        await engine.api.call("POST", "/containers/x/start", what="start x")
    assert refused.value.status == 500
    assert refused.value.retryable


async def test_a_refusal_without_json_is_told_too(engine: ScriptedEngine) -> None:
    engine.on("/info", json_answer(b"page not found\n", status="404 Not Found"))
    with pytest.raises(EngineRefused, match="ask: page not found"):
        await engine.api.call("GET", "/info", what="ask")


async def test_an_engine_that_does_not_answer_is_given_up_on(engine: ScriptedEngine) -> None:
    async def hang(stream: trio.SocketStream, line: str) -> None:
        await stream.receive_some()  # until we hang up

    engine.on("/info", hang)
    with pytest.raises(EngineError, match=r"ask: the engine did not finish within 0\.2 s") as late:
        await engine.api.call("GET", "/info", what="ask", seconds=0.2)
    assert late.value.retryable
    await engine.all_closed()


@pytest.mark.parametrize("garbage", [b"", b"\x00\x01garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{"])
async def test_garbage_and_broken_answers_are_errors_of_ours(engine: ScriptedEngine, garbage: bytes) -> None:
    engine.on("/info", raw_answer(garbage))
    with pytest.raises(EngineError, match="ask: "):
        await engine.api.call("GET", "/info", what="ask")


async def test_an_answer_that_is_no_json_is_an_error_of_ours(engine: ScriptedEngine) -> None:
    engine.on("/info", json_answer(b"<html>"))
    with pytest.raises(EngineError, match="ask: "):
        await engine.api.call("GET", "/info", what="ask")


async def test_no_engine_is_said_with_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match=f"unix://{tmp_path}/none: No such file"):
        await EngineApi({"DOCKER_HOST": f"unix://{tmp_path}/none"}).call("GET", "/info", what="ask")


async def test_a_socket_nobody_listens_on_is_said(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with pytest.raises(RuntimeUnavailable, match="Connection refused"):
        await EngineApi({"DOCKER_HOST": f"unix://{tmp_path}/dead"}).call("GET", "/info", what="ask")


async def test_an_engine_that_comes_back_newer_is_negotiated_with_again(tmp_path: Path) -> None:
    api = EngineApi({"DOCKER_HOST": f"unix://{tmp_path}/e.sock"})
    for newest, spoken in ((b"1.41", "1.41"), (b"1.44", "1.44")):
        scripted = ScriptedEngine(tmp_path / "e.sock")
        scripted.on("/version", json_answer(b'{"ApiVersion":"%s"}' % newest))
        scripted.on("/info", json_answer(b"{}"))
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(scripted.serve)
                await api.call("GET", "/info", what="ask")
                nursery.cancel_scope.cancel("the engine goes away")
        assert scripted.asked[-1] == f"GET /v{spoken}/info HTTP/1.1"
        with pytest.raises(RuntimeUnavailable):
            await api.call("GET", "/info", what="ask")
        scripted.path.unlink()


async def test_a_change_that_was_sent_is_waited_for_even_when_cancelled(engine: ScriptedEngine) -> None:
    arrived, go, answered = trio.Event(), trio.Event(), trio.Event()

    async def slow(stream: trio.SocketStream, line: str) -> None:
        arrived.set()
        await go.wait()
        await json_answer(b'{"Id":"x"}')(stream, line)
        answered.set()

    engine.on("/containers/create", slow)
    returned = trio.Event()

    async def create() -> None:
        try:
            await engine.api.settle("POST", "/containers/create", what="create")
        finally:
            returned.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(create)
        await arrived.wait()
        nursery.cancel_scope.cancel("the test")
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
            assert not returned.is_set()
            go.set()
            await returned.wait()
            assert answered.is_set()


async def test_a_refused_change_is_an_error_of_its_own_not_a_group(engine: ScriptedEngine) -> None:
    with pytest.raises(EngineRefused, match="no such route"):
        await engine.api.settle("POST", "/containers/create", what="create")


async def test_two_hundred_cancelled_calls_leave_no_descriptor(engine: ScriptedEngine) -> None:
    async def slow(stream: trio.SocketStream, line: str) -> None:
        await trio.sleep(0.003)
        await json_answer(b"{}")(stream, line)

    engine.on("/info", slow)
    api = engine.api
    await api.call("GET", "/info", what="ask")
    before = len(os.listdir("/proc/self/fd"))
    for number in range(200):
        with trio.move_on_after(number * 0.00005):
            await api.call("GET", "/info", what="ask")
    await engine.all_closed()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_plain_tcp_is_refused() -> None:
    for host in ("tcp://127.0.0.1:2375", "http://127.0.0.1:2375", "tcp://host"):
        with pytest.raises(RuntimeUnavailable):
            endpoint_from({"DOCKER_HOST": host})


@pytest.mark.parametrize("host", ["ssh://me@host", "npipe:////./pipe/docker", "unix://", "nonsense", "fd://"])
def test_a_host_that_cannot_be_used_is_named(host: str) -> None:
    with pytest.raises(RuntimeUnavailable, match="DOCKER_HOST="):
        endpoint_from({"DOCKER_HOST": host})


def test_the_engine_is_looked_for_where_docker_does(tmp_path: Path) -> None:
    assert endpoint_from({"DOCKER_HOST": "unix:///a/b.sock"}).socket_path == "/a/b.sock"
    default = "/var/run/docker.sock"
    expected = default if Path(default).is_socket() else str(tmp_path / "docker.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "docker.sock"))
        assert endpoint_from({"XDG_RUNTIME_DIR": str(tmp_path)}).socket_path == expected
    assert endpoint_from({"XDG_RUNTIME_DIR": "/nowhere"}).socket_path == default


def test_tls_without_readable_certificates_says_which_are_needed(tmp_path: Path) -> None:
    environ = {"DOCKER_HOST": "tcp://h:2376", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)}
    with pytest.raises(RuntimeUnavailable) as refused:
        endpoint_from(environ)
    assert "ca.pem" in refused.value.hint


async def test_pulling_reports_the_bytes_of_all_layers(engine: ScriptedEngine) -> None:
    engine.on(
        "/images/create",
        lines_answer(
            b'{"status":"Pulling from library/x","id":"1"}\n{"status":"Downloading","id":"a",',
            b'"progressDetail":{"current":10,"total":100}}\r\n',
            b'{"status":"Downloading","id":"b","progressDetail":{"current":5,"total":50}}\n',
            b'{"status":"Download complete","id":"a","progressDetail":{}}\n{"status":"Status: Downloaded"}',
        ),
    )
    reports: list[Progress] = []
    await images.pull(engine.api, "x:1", reports.append)
    assert engine.asked[-1].split()[1].endswith("/images/create?fromImage=x&tag=1")
    assert reports
    assert (reports[0].what, reports[0].done, reports[0].total, reports[0].unit) == ("pulling", 10, 100, "bytes")


async def test_an_error_in_the_middle_of_a_pull_is_a_missing_image(engine: ScriptedEngine) -> None:
    engine.on("/images/create", lines_answer(b'{"status":"Pulling"}\n', b'{"error":"manifest unknown"}\n'))
    with pytest.raises(ImageMissing, match="manifest unknown"):
        await images.pull(engine.api, "x:1", lambda progress: None)


async def test_a_pull_that_stalls_is_given_up_on(engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "PULL_SILENCE_SECONDS", 0.2)
    engine.on("/images/create", lines_answer(b'{"status":"Pulling"}\n', then=trio.sleep_forever))
    with pytest.raises(ImageMissing, match="nothing came"):
        await images.pull(engine.api, "x:1", lambda progress: None)


async def test_a_line_without_end_is_not_collected(engine: ScriptedEngine) -> None:
    async def endless(stream: trio.SocketStream, line: str) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            await stream.send_all(b"x" * 65536)

    engine.on("/images/create", endless)
    with pytest.raises(ImageMissing, match="too long"):
        await images.pull(engine.api, "x:1", lambda progress: None)


async def test_logs_that_are_no_frames_are_an_error_of_ours(engine: ScriptedEngine) -> None:
    engine.on("/logs", lines_answer(b"not a frame at all"))
    with pytest.raises(Exception, match="not a frame header"):
        await read_logs(engine.api, "x", tail=10, max_bytes=100)


async def test_a_stream_that_is_not_upgraded_is_an_error(engine: ScriptedEngine) -> None:
    engine.on("/containers/x/exec", json_answer(b'{"Id":"e"}', status="201 Created"))
    engine.on("/exec/e/start", json_answer(b""))
    engine.on("/exec/e/json", json_answer(b'{"Running":false,"ExitCode":0}'))
    with pytest.raises(EngineError, match="not a raw stream"):
        await run_exec(
            engine.api, "x", ["true"], env={}, working_dir=None, stdin=b"", timeout_seconds=5, max_output_bytes=100
        )


async def test_output_that_comes_with_the_upgrade_is_not_lost(engine: ScriptedEngine) -> None:
    upgraded = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    engine.on("/containers/x/exec", json_answer(b'{"Id":"e"}', status="201 Created"))
    engine.on("/exec/e/start", raw_answer(upgraded + b"\x01\0\0\0\0\0\0\x05early"))
    engine.on("/exec/e/json", json_answer(b'{"Running":false,"ExitCode":3}'))
    result = await run_exec(
        engine.api, "x", ["true"], env={}, working_dir=None, stdin=b"", timeout_seconds=5, max_output_bytes=100
    )
    assert (result.exit_code, result.stdout) == (3, b"early")


async def test_a_trial_never_raises(engine: ScriptedEngine, tmp_path: Path) -> None:
    for environ in (engine.environ, {"DOCKER_HOST": "tcp://h"}, {"DOCKER_HOST": f"unix://{tmp_path}/none"}):
        report = await Docker(environ, scratch=tmp_path).probe()
        assert not report.ok
        assert report.reason
    engine.on("/info", json_answer(b'{"SecurityOptions":["name=seccomp,profile=unconfined"]}'))
    report = await Docker(engine.environ, scratch=tmp_path).probe()
    assert (report.ok, "seccomp" in report.reason) == (False, True)
    engine.on("/info", json_answer(b'{"SecurityOptions":["name=seccomp,profile=default"]}'))
    report = await Docker(engine.environ, scratch=tmp_path / "not-there").probe()
    assert (report.ok, "not-there" in report.reason) == (False, True)


async def test_over_tls_both_sides_show_certificates(tmp_path: Path, engine: ScriptedEngine) -> None:
    engine.on("/info", json_answer(b'{"NCPU":3}'))
    async with tls_in_front_of(engine.path, tmp_path) as environ:
        assert await EngineApi(environ).call("GET", "/info", what="ask") == {"NCPU": 3}
        other = tmp_path / "other"
        other.mkdir()
        certificates(other)
        with pytest.raises((RuntimeUnavailable, EngineError)):
            await EngineApi({**environ, "DOCKER_CERT_PATH": str(other)}).call("GET", "/info", what="ask")
