"""The program that a container runs: it starts what the daemon asks for and joins the inside with the daemon.

Runs as the container's first process, or as the only child of the sandbox's own. Dials the daemon's socket for ever;
ends on SIGTERM, after everything that it has started.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from typing import List, Optional

if __name__ == "__main__":
    # Run by its path (`python3 -I …/oubliette_relay`), where only this folder is on the path, and no `-m` is possible.
    _HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(_HERE), *(entry for entry in sys.path if os.path.abspath(entry) != _HERE)]
    # asyncio does without; importing it takes 4 MB and a quarter of the time to start, in every container.
    sys.modules["ssl"] = None  # type: ignore[assignment]

import asyncio

from oubliette_relay.control import Control
from oubliette_relay.pairing import ModelDoor, Pairs
from oubliette_relay.processes import Reaper

STOP_SECONDS = 3.0
"""Between SIGTERM and SIGKILL for what runs inside; well below the grace that an engine gives to us."""
_PR_SET_CHILD_SUBREAPER = 36


def main(argv: Optional[List[str]] = None) -> int:
    """The exit code: 0 after SIGTERM, 1 when the model port is taken."""
    parser = argparse.ArgumentParser(prog="oubliette_relay", description=__doc__)
    parser.add_argument("--socket", default="/run/oubliette/relay.sock", help="where the daemon listens")
    parser.add_argument("--model-port", type=int, default=4097, help="loopback port for model requests; 0 takes any")
    options = parser.parse_args(argv)
    _settle_in()
    return asyncio.run(_run(options.socket, options.model_port))


async def _run(path: str, model_port: int) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    reaper = Reaper(loop)
    pairs = Pairs(path)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGCHLD, reaper.reap)
    try:
        door = ModelDoor(path, pairs, model_port)
    except OSError as error:
        sys.stderr.write(f"relay: 127.0.0.1:{model_port} cannot be had: {error.strerror}\n")
        return 1
    control = Control(path, reaper, pairs, door.port)
    tasks = [asyncio.ensure_future(work) for work in (control.run(), control.beat())]
    stopping = asyncio.ensure_future(stop.wait())
    done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
    door.close()
    await control.supervisor.stop_all(STOP_SECONDS)
    pairs.close()
    for task in done - {stopping}:
        # Neither of them ever returns; what is here is a bug, and the container's log must show it.
        task.result()
    return 0


def _settle_in() -> None:
    """Adopt orphans, never block on a log that nobody reads, have a home directory."""
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (OSError, AttributeError):
        # As the first process of its namespace it is given the orphans anyway.
        sys.stderr.write("relay: cannot become a subreaper\n")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o022)
    os.chdir("/")
    if sys.__stderr__ is not None:
        os.set_blocking(sys.__stderr__.fileno(), False)
    try:
        os.makedirs(os.environ.get("HOME", "/tmp/home"), exist_ok=True)
    except OSError as error:
        sys.stderr.write(f"relay: no home directory: {error}\n")


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # A thread that hangs in a scan of /proc must not keep a container from ending.
    os._exit(code)
