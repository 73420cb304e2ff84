"""Commands run in this process, in a home of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from oubliette.cli.init import make_home
from oubliette.cli.main import run_command
from oubliette.home import Home

from .fake_daemon import FakeDaemon, fake_daemon


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The user's home directory and Oubliette's default home in it, initialised; nothing of this machine is touched."""
    user = tmp_path / "user"
    work = tmp_path / "shop"
    for directory in (user, work):
        directory.mkdir()
    for name in ("OUBLIETTE_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "CONTAINER_RUNTIME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(user))
    monkeypatch.chdir(work)
    made = Home(user / ".oubliette")
    make_home(made)
    return made


@pytest.fixture
def cli(home: Home, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command line; its exit code and what it wrote."""

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        code = run_command(list(arguments))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def daemon(home: Home) -> Iterator[FakeDaemon]:
    """A fake one, running in the home."""
    with fake_daemon(home) as fake:
        yield fake
