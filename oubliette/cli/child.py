"""Starting and stopping a daemon as a process of its own: for ``serve --daemon``, ``run``, ``demo`` and ``stop``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from oubliette.cli.client import Daemon
from oubliette.cli.output import note, sentences
from oubliette.cli.place import running_daemon
from oubliette.cli.problems import CliError
from oubliette.home import Home

START_SECONDS = 60
STOP_SECONDS = 40
"""A little more than the daemon gives itself."""
POLL_SECONDS = 0.05


def start(home: Home, *arguments: str, environment: Mapping[str, str] | None = None) -> Daemon:
    """Start a daemon in a session of its own and wait until it answers. Raises CliError with its last words."""
    home.create()
    words = home.logs / "start.log"
    command = [sys.executable, "-m", "oubliette", "--dir", str(home.root), "serve", *arguments]
    package = Path(__file__).resolve().parents[2]  # where -m finds us, installed or not
    descriptor = os.open(words, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
            cwd=package,
            env={**os.environ, **(environment or {})},
        )
    finally:
        os.close(descriptor)
    give_up_at = time.monotonic() + START_SECONDS
    while True:
        code = process.poll()
        if code is not None:
            raise CliError(f"the daemon did not start (exit code {code})", hint=_last_words(words))
        said = home.running()
        daemon = running_daemon(home) if said is not None and said["pid"] == process.pid else None
        if daemon is not None and _healthy(daemon):
            return daemon
        if time.monotonic() > give_up_at:
            process.terminate()
            raise CliError(f"the daemon did not answer within {START_SECONDS} s", hint=_last_words(words))
        time.sleep(POLL_SECONDS)


def _healthy(daemon: Daemon) -> bool:
    try:
        return daemon.get("/health")[0] == 200
    except CliError:
        return False


def _last_words(path: Path) -> str:
    """Its complaint with the hint, else its last line."""
    lines = path.read_text(errors="replace").strip().splitlines()
    complaint = next((index for index, line in enumerate(lines) if line.startswith("oubliette: ")), len(lines) - 1)
    words = [line.strip().removeprefix("oubliette: ") for line in lines[max(complaint, 0) :][:2]]
    return sentences(words[0], " ".join(words[1:])) if words else f"It left no words in {path}."


def stop(home: Home, pid: int, *, seconds: float = STOP_SECONDS) -> bool:
    """Ask the process that holds the home to end, and wait. False when it still runs after ``seconds``."""
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return True
    except PermissionError as error:
        raise CliError(f"the daemon (pid {pid}) belongs to somebody else") from error
    give_up_at = time.monotonic() + seconds
    while home.holder() == pid:
        if time.monotonic() > give_up_at:
            return False
        time.sleep(POLL_SECONDS)
    return True


@contextmanager
def borrowed_daemon(home: Home, *, environment: Mapping[str, str] | None = None) -> Iterator[tuple[Daemon, bool]]:
    """The running daemon; else one started on a free port for as long as this lasts: then the second value is True."""
    daemon = running_daemon(home)
    if daemon is not None:
        yield daemon, False
        return
    note("no daemon is running: one is started for this and stopped afterwards")
    daemon = start(home, "--address", "127.0.0.1:0", environment=environment)
    holder = home.holder() or 0
    try:
        yield daemon, True
    finally:
        if holder and not stop(home, holder):
            note(f"the daemon (pid {holder}) is still stopping")
