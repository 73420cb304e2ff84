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

SECONDS = 540

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    "files", ["test_contract.py", "test_walls.py", "test_bubblewrap_life.py test_bubblewrap_walls.py"]
)
async def test_an_ordinary_user_has_the_same_sandboxes_without_root(files: str, tmp_path: Path) -> None:
    own = tmp_path / "own"
    suite = [f"tests/runtime/{name}" for name in files.split()]
    options = ["-q", "-k", "bubblewrap", "-p", "no:cacheprovider", "--basetemp", str(own / "pytest")]
    command = as_ordinary_user([sys.executable, "-B", "-m", "pytest", *suite, *options], own=own)
    env = {"PATH": os.environ["PATH"], "HOME": str(own), "LANG": "C.UTF-8"}
    with trio.fail_after(SECONDS + 20), outside() as place:
        env[OUTSIDE] = place
        done = await process.run(command, env=env, cwd=ROOT, timeout_seconds=SECONDS)
    said = done.stdout.decode() + done.stderr.decode()
    assert not done.timed_out, said
    assert done.exit_code == 0, said
    last = said.strip().splitlines()[-1]
    assert re.search(r"\d+ passed", last), last
    assert "skipped" not in last
