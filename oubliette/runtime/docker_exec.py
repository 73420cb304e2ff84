"""Commands inside a container through the engine's exec, and the container's own output."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import trio

from oubliette.errors import ContainerError, ContainerExited, EngineError, WireError
from oubliette.log import get_logger
from oubliette.runtime.base import ExecResult
from oubliette.runtime.docker_api import EngineApi, EngineRefused, Hijacked, read_body
from oubliette.runtime.process import HeadTail
from oubliette.wire.docker_stream import Channel, FrameReader

EXEC_MARK = "OUBLIETTE_EXEC"
"""Variable that every process of one exec carries, so that it can be killed: the engine has no call for that."""

KILL_SECONDS = 10.0
START_SECONDS = 1.0
"""After this a command that was asked for and has not started never will: the request did not arrive."""
POLL_SECONDS = 0.02
DRAIN_SECONDS = 5.0
LOGS_SECONDS = 30.0
STDIN_CHUNK_BYTES = 1 << 16

_log = get_logger(__name__)

# Needs only sh and tr, which every image with git has. Until one whole pass finds nothing: what it missed has forked.
_KILL_SCRIPT = """
i=0
while [ $i -lt 50 ]; do
  found=
  for p in /proc/[0-9]*; do
    case "
$(tr '\\0' '\\n' 2>/dev/null < $p/environ)
" in *"
$1
"*) kill -9 ${p#/proc/} 2>/dev/null && found=1;; esac
  done
  [ -z "$found" ] && exit 0
  i=$((i + 1))
done
exit 1
"""


async def run_exec(
    api: EngineApi,
    name: str,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    working_dir: str | None,
    stdin: bytes,
    timeout_seconds: float,
    max_output_bytes: int,
) -> ExecResult:
    """Run it, as ``Runtime.exec``. Timed out or cancelled, everything that carries its mark is killed."""
    if stdin and api.endpoint().tls:
        # A TLS connection cannot be half-closed, so the end of stdin is made inside.
        argv = ["sh", "-c", 'head -c "$0" | "$@"', str(len(stdin)), *argv]
    command = _Command(api, name, HeadTail(max_output_bytes), HeadTail(max_output_bytes))
    await command.create(argv, env, working_dir, stdin=bool(stdin))
    ended = False
    try:
        timed_out = await command.run(stdin, timeout_seconds)
        code = await command.exit_code()
        ended = True
    finally:
        if not ended:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + KILL_SECONDS):
                await command.kill_what_may_start()
    out, err = command.out, command.err
    return ExecResult(code, out.kept(), err.kept(), out.total, err.total, timed_out)


class _Command:
    """One exec of the engine, from its creation to its exit code."""

    def __init__(self, api: EngineApi, name: str, out: HeadTail, err: HeadTail) -> None:
        self.out = out
        self.err = err
        self._api = api
        self._name = name
        self._what = f"exec in container {name}"
        self._mark = f"{EXEC_MARK}={secrets.token_hex(8)}"
        self._frames = FrameReader()
        self._id = ""

    async def create(
        self, argv: Sequence[str], env: Mapping[str, str], working_dir: str | None, *, stdin: bool
    ) -> None:
        entries = [*(f"{key}={value}" for key, value in env.items()), self._mark]
        self._id = await _create(self._api, self._name, argv, entries, working_dir, stdin=stdin)

    async def run(self, stdin: bytes, timeout_seconds: float) -> bool:
        """Start it and take its output to the end. True when it had to be killed for its time."""
        failure: ContainerError | WireError | None = None
        path, body = f"/exec/{self._id}/start", {"Detach": False, "Tty": False}
        seconds = timeout_seconds + KILL_SECONDS + DRAIN_SECONDS
        async with (
            self._api.hijack(path, what=self._what, body=body, seconds=seconds) as stream,
            trio.open_nursery() as nursery,
        ):
            if stdin:
                nursery.start_soon(self._feed, stream, stdin)
            limit = trio.CancelScope(deadline=trio.current_time() + timeout_seconds)
            try:
                with limit:
                    await self._read(stream)
                if limit.cancelled_caught:
                    await _kill(self._api, self._name, self._mark)
                    with trio.move_on_after(DRAIN_SECONDS):
                        await self._read(stream)
            except (ContainerError, WireError) as error:
                failure = error
            nursery.cancel_scope.cancel("the command has ended, nobody reads its stdin")
        if failure is not None:
            raise failure
        return limit.cancelled_caught

    async def exit_code(self) -> int:
        """Wait until the engine has noted it, which is a moment after the end of the output."""
        with trio.move_on_after(DRAIN_SECONDS):
            while True:
                code = await self._noted_code()
                if code is not None:
                    return code
                await trio.sleep(POLL_SECONDS)
        raise EngineError(f"{self._what}: the engine does not say how it ended", retryable=True)

    async def kill_what_may_start(self) -> None:
        """Kill it, also when the engine has only just been asked to start it. Errors are left: the caller has one."""
        deadline = trio.current_time() + START_SECONDS
        try:
            while True:
                await _kill(self._api, self._name, self._mark)
                noted = await self._noted_code()
                if noted is not None or trio.current_time() > deadline:
                    return
                await trio.sleep(POLL_SECONDS)
        except ContainerError as error:
            _log.warning("exec_not_killed", container=self._name, error=str(error))

    async def _noted_code(self) -> int | None:
        """None while it runs, or has not been started."""
        try:
            answer = await self._api.call("GET", f"/exec/{self._id}/json", what=self._what)
        except EngineRefused as refused:
            if refused.status == 404:
                raise ContainerExited(f"{self._what}: the container ended") from refused
            raise
        code = answer.get("ExitCode")
        return None if answer.get("Running") or code is None else int(code)

    async def _read(self, stream: Hijacked) -> None:
        while data := await stream.read():
            for chunk in self._frames.feed(data):
                (self.out if chunk.channel is Channel.STDOUT else self.err).feed(chunk.data)

    async def _feed(self, stream: Hijacked, data: bytes) -> None:
        view = memoryview(data)
        try:
            for start in range(0, len(view), STDIN_CHUNK_BYTES):
                await stream.write(bytes(view[start : start + STDIN_CHUNK_BYTES]))
            if self._api.endpoint().tls is None:
                stream.close_writing()
        except EngineError:
            return  # A command may end without reading all of its stdin.


async def _create(
    api: EngineApi, name: str, argv: Sequence[str], entries: Sequence[str], working_dir: str | None, *, stdin: bool
) -> str:
    body: dict[str, Any] = {
        "Cmd": list(argv),
        "Env": list(entries),
        "AttachStdin": stdin,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "Privileged": False,
    }
    if working_dir is not None:
        body["WorkingDir"] = working_dir
    what = f"exec in container {name}"
    try:
        answer = await api.call("POST", f"/containers/{quote(name, safe='')}/exec", what=what, body=body)
    except EngineRefused as refused:
        if refused.status in (404, 409):
            raise ContainerExited(f"{what}: it does not run ({refused.message})") from refused
        raise
    return str(answer["Id"])


async def _kill(api: EngineApi, name: str, mark: str) -> None:
    """Kill every process of the container that carries ``mark``. A container that has ended holds none."""
    argv = ["sh", "-c", _KILL_SCRIPT, "sh", mark]
    command = _Command(api, name, HeadTail(1 << 12), HeadTail(1 << 12))
    try:
        await command.create(argv, {}, None, stdin=False)
        await command.run(b"", KILL_SECONDS)
        code = await command.exit_code()
    except ContainerExited:
        return
    if code != 0:
        raise EngineError(
            f"kill an exec in container {name}: {command.err.kept().decode('utf-8', 'replace') or f'exit {code}'}"
        )


async def read_logs(api: EngineApi, name: str, *, tail: int, max_bytes: int) -> bytes:
    """As ``Runtime.logs``."""
    what = f"read the logs of container {name}"
    kept, frames = bytearray(), FrameReader()
    params: dict[str, str | int] = {"stdout": 1, "stderr": 1, "tail": tail}
    path = f"/containers/{quote(name, safe='')}/logs"

    def take(data: bytes) -> None:
        for chunk in frames.feed(data):
            kept.extend(chunk.data)
        if len(kept) > 2 * max_bytes:
            del kept[: len(kept) - max_bytes]

    async with api.stream("GET", path, what=what, params=params, seconds=LOGS_SECONDS) as answer:
        await read_body(answer, take, what=what, silence_seconds=LOGS_SECONDS)
    return bytes(kept[max(0, len(kept) - max_bytes) :])
