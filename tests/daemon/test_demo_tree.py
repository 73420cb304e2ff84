"""``oubliette demo --tree`` as a process of its own: in a pipe, in a terminal, for programs, and interrupted."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import trio

from oubliette.cli.demo_tree import EXPECTED
from tests.daemon.harness import toolkit_cache
from tests.daemon.processes import vanish

pytestmark = [pytest.mark.daemon, pytest.mark.agent, pytest.mark.engine]

DEMO_SECONDS = 240
ROW = re.compile(r"^([│├└─ ]*)(\S+) +(\w+) +([\d.]+) s +([\d,]+) +([\d,]+) +([\d.]+)$", re.MULTILINE)
"""A line of the table at the end: lead, title, outcome, seconds, tokens in, out, USD."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "toolkit").symlink_to(toolkit_cache())
    return home


def command(home: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "oubliette", "--dir", str(home), "demo", "--tree", "--runtime", "bubblewrap", *more]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "HOME"}}
    return {**kept, "TERM": "xterm-256color", "PYTHONUNBUFFERED": "1"}


async def demo(home: Path, *more: str) -> subprocess.CompletedProcess[bytes]:
    with trio.fail_after(DEMO_SECONDS):
        return await trio.run_process(
            command(home, *more), env=environment(), capture_stdout=True, capture_stderr=True, check=False
        )


def titles_and_outcomes(shown: str) -> dict[str, str]:
    return {found[1]: found[2] for found in ROW.findall(shown)}


def in_order(shown: str, *wanted: str) -> None:
    """Each of them is there, after the one before it."""
    at = 0
    for one in wanted:
        found = shown.find(one, at)
        assert found >= 0, (one, shown)
        at = found


async def test_in_a_pipe_it_tells_what_happens_and_ends_with_a_table_and_the_answer(home: Path) -> None:
    done = await demo(home)
    shown = done.stdout.decode()
    assert done.returncode == 0, (shown, done.stderr.decode())
    assert "\x1b" not in shown
    in_order(shown, "demo: + survey", "survey: + kernel", "kernel: completed in", "survey: completed in", "SESSION")
    in_order(shown, "broken: → bash", "broken: failed in")
    in_order(shown, "endless: → bash sleep", "endless: cancelled in", "demo: completed in", "SESSION")
    assert titles_and_outcomes(shown) == EXPECTED
    leads = {found[1]: found[0] for found in ROW.findall(shown)}
    assert leads["kernel"].endswith(("   └─ ", "│  └─ "))
    answer = shown[shown.index("What came of my children:") :]
    assert "- completed: 168 primes are below 1000" in answer
    assert "Linux" in answer, "the grandchild's answer, which its parent quoted"
    assert "- failed: The model provider answered 400: This is part of the demo" in answer
    assert "- cancelled" in answer
    await vanish(str(home), timeout_seconds=20)


async def test_in_a_terminal_the_tree_is_drawn_in_place(home: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 110, 0, 0))
    process = await trio.lowlevel.open_process(command(home), env=environment(), stdout=theirs)
    os.close(theirs)
    with trio.fail_after(DEMO_SECONDS):
        written = await trio.to_thread.run_sync(_everything, ours, abandon_on_cancel=True)
        assert await process.wait() == 0, written
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    assert "\x1b[" in written
    # Pictures from the middle of it: the tree, a tool in progress, a state.
    assert re.search(r"├─ primes +running +.*bash python3 primes.py", drawn)
    assert re.search(r"└─ kernel +\w+", drawn)
    assert re.search(r"endless +running +bash sleep 600 +[\d,]+ +\d+ s", drawn)
    assert "demo: + survey" not in drawn, "lines are for pipes"
    assert titles_and_outcomes(drawn.replace("\r\n", "\n")) == EXPECTED
    await vanish(str(home), timeout_seconds=20)


def _everything(terminal: int) -> str:
    """What is written to a terminal until its other end is closed."""
    pieces: list[bytes] = []
    try:
        while piece := os.read(terminal, 65536):
            pieces.append(piece)
    except OSError:  # how Linux says that nobody has the other end
        os.close(terminal)
    return b"".join(pieces).decode(errors="replace")


async def test_for_programs_it_prints_one_object(home: Path) -> None:
    done = await demo(home, "--json")
    assert done.returncode == 0, (done.stdout, done.stderr)
    told = json.loads(done.stdout)
    assert told["ok"] is True
    assert told["problems"] == []
    assert {one["title"]: one["outcome"] for one in told["sessions"]} == EXPECTED
    by_title = {one["title"]: one for one in told["sessions"]}
    assert by_title["kernel"]["parent_id"] == by_title["survey"]["session_id"]
    assert (by_title["demo"]["depth"], by_title["primes"]["depth"], by_title["kernel"]["depth"]) == (0, 1, 2)
    assert by_title["broken"]["error"]["code"] == "model_error"
    assert all(one["usage"]["requests"] >= 1 and one["usage"]["input_tokens"] > 0 for one in told["sessions"])
    total = sum(one["usage"]["input_tokens"] for one in told["sessions"])
    assert told["usage"]["input_tokens"] == total
    assert told["usage"]["cost_usd"] == 0
    assert "168 primes" in told["answer"]


async def test_ctrl_c_cancels_the_tree_and_leaves_nothing(home: Path) -> None:
    process = await trio.lowlevel.open_process(
        command(home), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    heard = b""
    with trio.fail_after(DEMO_SECONDS):
        while b"endless: \xe2\x86\x92 bash" not in heard:
            piece = await process.stdout.receive_some()
            assert piece, heard
            heard += piece
        process.send_signal(signal.SIGINT)
        noted = b"".join([piece async for piece in process.stderr])
        assert await process.wait() == 130, noted
    await process.stdout.aclose()
    assert b"cancelling the tree" in noted
    await vanish(str(home), timeout_seconds=20)


def test_help_says_what_the_options_are(home: Path) -> None:
    done = subprocess.run([*command(home), "--help"], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "--tree" in done.stdout
    assert "--json" in done.stdout
