"""Root's path of bubblewrap is tested where root runs the tests; here the same tests run as an ordinary user."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import trio

from oubliette.runtime import process
from tests.runtime.ordinary_user import ROOT, as_ordinary_user
from tests.runtime.outside import OUTSIDE, outside
from tests.runtime.test_bubblewrap_agent import TOOLKIT, toolkit_path

SECONDS = 540

pytestmark = pytest.mark.engine


SUITES = (
    ["test_contract.py"],
    ["test_walls.py"],
    ["test_bubblewrap_life.py", "test_bubblewrap_walls.py"],
    ["test_bubblewrap_agent.py"],
)


@pytest.mark.parametrize("files", SUITES, ids=lambda files: files[0])
async def test_an_ordinary_user_has_the_same_sandboxes_without_root(files: list[str], tmp_path: Path) -> None:
    own, toolkit = tmp_path / "own", await toolkit_path()
    suite = [f"tests/runtime/{name}" for name in files]
    options = ["-q", "-k", "bubblewrap", "-p", "no:cacheprovider", "--basetemp", str(own / "pytest")]
    python = [sys.executable, "-B", "-m", "pytest", *suite, *options]
    command = as_ordinary_user(python, own=own, readable=[toolkit])
    env = {"PATH": os.environ["PATH"], "HOME": str(own), "LANG": "C.UTF-8", TOOLKIT: str(toolkit)}
    with trio.fail_after(SECONDS + 20), outside() as place:
        env[OUTSIDE] = place
        done = await process.run(command, env=env, cwd=ROOT, timeout_seconds=SECONDS)
    said = done.stdout.decode() + done.stderr.decode()
    assert not done.timed_out, said
    assert done.exit_code == 0, said
    last = said.strip().splitlines()[-1]
    assert re.search(r"\d+ passed", last), last
    assert "skipped" not in last
