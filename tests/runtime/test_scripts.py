"""scripts/engine and scripts/images where there is an engine and an image already: they find them, and are quick."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from oubliette.runtime.default_images import DEFAULT_IMAGES

ROOT = Path(__file__).resolve().parents[2]
QUICK_SECONDS = 10


def run(*command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environ}
    return subprocess.run(
        [str(ROOT / command[0]), *command[1:]], env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.engine
def test_the_engine_that_is_there_is_named_and_nothing_else() -> None:
    started = time.monotonic()
    for action in ("start", "status"):
        done = run("scripts/engine", action)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("DOCKER_HOST=unix:///")
        assert done.stdout.count("\n") == 1
    assert time.monotonic() - started < QUICK_SECONDS


@pytest.mark.engine
def test_images_that_are_there_are_not_built_again() -> None:
    started = time.monotonic()
    done = run("scripts/images")
    assert done.returncode == 0, done.stderr
    for image in DEFAULT_IMAGES.values():
        assert f"{image} is there" in done.stderr
    assert time.monotonic() - started < QUICK_SECONDS


def test_stopping_where_none_of_ours_runs_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "docker.pid").write_text(str(os.getpid()))  # a number that somebody else has by now
    done = run("scripts/engine", "stop", OUBLIETTE_ENGINE_DIR=str(tmp_path))
    assert done.returncode == 0
    assert "none of ours runs" in done.stderr


@pytest.mark.parametrize("command", [("scripts/engine", "restart"), ("scripts/images", "no-such-type")])
def test_a_wrong_word_is_answered_with_the_usage(command: tuple[str, str]) -> None:
    done = run(*command)
    assert done.returncode == 1
    assert command[0] in done.stderr
