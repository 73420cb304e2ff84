"""A real relay as a process of its own, without a sandbox around it, and the daemon's end of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from oubliette.container.link import RelayLink
from oubliette.relay_host import RelayHost

RELAY = Path(__file__).parents[2] / "relay" / "oubliette_relay"
PYTHON = os.environ.get("OUBLIETTE_TEST_RELAY_PYTHON", sys.executable)
"""Images bring their own Python: another one can be tried with this."""
MARK = f"OUBLIETTE_SESSION_{os.getpid()}"
"""Instead of the real variable: without a pid namespace around it, a relay sees every process of this machine, and must
not kill what carries another test's mark."""
_START = f"""
import sys
sys.path.insert(0, {str(RELAY.parent)!r})
from oubliette_relay import protocol
protocol.SESSION_VARIABLE = {MARK!r}
import os
from oubliette_relay.__main__ import main
code = main()
sys.stderr.flush()
os._exit(code)
"""
RELAY_COMMAND = (PYTHON, "-ISB", "-c", _START)
ENV = {"PATH": os.environ["PATH"]}
PATIENCE = 20


async def echo(stream: trio.abc.HalfCloseableStream, _container_id: str = "") -> None:
    """Sends back what comes until it ends, and then its own end."""
    async for data in stream:
        await stream.send_all(data)
    await stream.send_eof()


@contextmanager
def relay_process(directory: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A relay that dials ``directory/relay.sock``. Stopped in the end, whatever it has started with it."""
    with (directory / "relay.log").open("ab") as logged:
        process = subprocess.Popen(
            [*RELAY_COMMAND, "--socket", str(directory / "relay.sock"), "--model-port", "0", *more],
            env={**ENV, "HOME": str(directory / "home")},
            stdin=subprocess.DEVNULL,
            stdout=logged,
            stderr=logged,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@asynccontextmanager
async def connected(
    directory: Path, serve: Callable[..., object] = echo
) -> AsyncIterator[tuple[RelayLink, subprocess.Popen[bytes]]]:
    """A relay and the link to it."""
    host = RelayHost(serve_model=serve)  # type: ignore[arg-type]
    with relay_process(directory) as process:
        async with host.listen("c1", directory) as link:
            with trio.fail_after(PATIENCE):
                await link.wait_connected()
            yield link, process


@asynccontextmanager
async def server(handler: Callable[[trio.SocketStream], object]) -> AsyncIterator[int]:
    """A TCP server on the loopback, as the agent has it; its port."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(serve_tcp, handler)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel("the test is over")


async def serve_tcp(
    handler: Callable[[trio.SocketStream], object],
    *,
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    await trio.serve_tcp(handler, 0, host="127.0.0.1", task_status=task_status)  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that nothing tells of."""
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.sleep(0.01)


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(data) async for data in stream])


async def pid_from(path: Path) -> int:
    """The pid that a process of the test writes into a file."""
    await until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())  # noqa: ASYNC240 - a small file of the test's own


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
