"""Repositories and commands for tests of project/: made with the host's git, bare of its configuration."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from oubliette.runtime.base import ExecResult
from oubliette.runtime.process import run

ENV = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def git(where: Path, *args: str) -> str:
    return subprocess.run(
        ["git", *args], cwd=where, env=ENV, check=True, capture_output=True, text=True, timeout=30
    ).stdout.strip()


def make_repository(path: Path, files: Mapping[str, str]) -> Path:
    path.mkdir(parents=True)
    git(path, "init", "--quiet", "-b", "main")
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "-m", "first")
    return path


async def run_here(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str,
    stdin: bytes = b"",
    timeout_seconds: float,
    max_output_bytes: int,
) -> ExecResult:
    """What a container's exec does, without a container."""
    return await run(
        argv, env=env, cwd=cwd, stdin=stdin, timeout_seconds=timeout_seconds, max_output_bytes=max_output_bytes
    )
