"""The home: which one, closed to others, and only one daemon in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from oubliette.home import Home, HomeError, HomeLockedError, find_home, write_private


def test_the_first_that_applies_is_the_home(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path / "me"), "OUBLIETTE_HOME": "elsewhere"}
    assert find_home(Path("given"), env, tmp_path).root == tmp_path / "given"
    assert find_home(None, env, tmp_path).root == tmp_path / "elsewhere"
    del env["OUBLIETTE_HOME"]
    assert find_home(None, env, tmp_path).root == tmp_path / "me" / ".oubliette"
    local = Home(tmp_path / ".oubliette")
    local.create()
    local.mark(env)
    assert find_home(None, env, tmp_path).root == local.root
    assert find_home(None, env, tmp_path).chosen_by == "./.oubliette"


def test_a_local_home_that_init_did_not_make_here_is_passed_over_and_said(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path / "me")}
    made = Home(tmp_path / "a" / ".oubliette")
    made.create()
    (tmp_path / "other" / ".oubliette").mkdir(parents=True)
    assert find_home(None, env, tmp_path / "other").chosen_by == "~/.oubliette"

    made.mark(env)
    copied = tmp_path / "b"
    (tmp_path / "a").rename(copied)
    found = find_home(None, env, copied)
    assert found.root == tmp_path / "me" / ".oubliette", "a copy of somebody's home, e.g. from a repository"
    assert "was not made by oubliette init" in found.note
    copied.rename(tmp_path / "a")
    assert find_home(None, env, tmp_path / "a").root == made.root
    assert find_home(None, {"HOME": str(tmp_path / "stranger")}, tmp_path / "a").root != made.root


def test_everything_made_is_closed_to_others(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    old = os.umask(0)
    try:
        home.create()
        write_private(home.config_file, "{}")
        with home.lock():
            modes = {path: path.stat().st_mode & 0o777 for path in [home.root, *home.root.rglob("*")]}
    finally:
        os.umask(old)
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert home.check() == []


def test_a_home_that_others_could_write_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.create()
    write_private(home.config_file, "{}")
    home.config_file.chmod(0o644)
    assert "can be read by others" in home.check()[0]
    home.config_file.chmod(0o620)
    with pytest.raises(HomeError, match="can be written by others"):
        home.check()
    home.config_file.chmod(0o600)
    home.data.chmod(0o777)
    with pytest.raises(HomeError, match="can be written by others"):
        home.check()


def test_a_home_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path / "home")
    home.create()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(HomeError, match=f"belongs to uid {owner}, not to uid {owner + 1}"):
        home.check()


def test_a_second_daemon_hears_the_pid_of_the_first(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.holder() is None
    with home.lock():
        assert home.holder() == os.getpid()
        with pytest.raises(HomeLockedError, match=rf"already running \(pid {os.getpid()}\)"), home.lock():
            pass
        assert home.running() is None, "it has not said where it listens"
        home.daemon_file.write_text(json.dumps({"pid": os.getpid(), "url": "http://127.0.0.1:1"}))
        assert home.running() == {"pid": os.getpid(), "url": "http://127.0.0.1:1"}
    assert home.holder() is None
    assert home.running() is None
    with home.lock():
        pass


def test_the_lock_dies_with_a_killed_daemon_and_its_stale_file_is_not_believed(tmp_path: Path) -> None:
    home = Home(tmp_path)
    program = (
        "import pathlib, sys, time\nfrom oubliette.home import Home\n"
        "with Home(pathlib.Path(sys.argv[1])).lock():\n    print('held', flush=True)\n    time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        home.daemon_file.write_text(json.dumps({"pid": child.pid, "url": "x"}))
        assert home.holder() == child.pid
        with pytest.raises(HomeLockedError), home.lock():
            pass
        child.kill()
    assert home.holder() is None
    with home.lock():
        assert home.running() is None


def test_looking_at_the_lock_does_not_make_a_start_fail(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    program = (
        "import pathlib, sys\nfrom oubliette.home import Home\nhome = Home(pathlib.Path(sys.argv[1]))\n"
        "print('looking', flush=True)\nwhile True: home.holder()"
    )
    with home.lock():
        pass
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "looking\n"
        try:
            for _ in range(50):
                with home.lock():
                    assert home.holder() == os.getpid()
        finally:
            child.kill()


def test_a_private_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    write_private(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
