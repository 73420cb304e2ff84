"""Control groups where this machine has none to give: version 2, delegated, half delegated, refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from oubliette.runtime import cgroup

FILES = ("cgroup.procs", "memory.max", "memory.swap.max", "pids.max", "cpu.max", "memory.current", "pids.current")


Write = Callable[[str, int | str], bool]


def as_a_kernel(write: Write) -> Write:
    """What is written to a control file is added to it."""

    def written(path: str, value: int | str) -> bool:
        if path.endswith("subtree_control"):
            Path(path).write_text(Path(path).read_text() + str(value).replace("+", " "))
            return True
        return write(path, value)

    return written


@pytest.fixture
def unified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree as systemd delegates it to a user: everything below ``user.service``, where this process is."""
    mount = tmp_path / "cgroup"
    own = mount / "user.slice" / "user.service" / "app.slice" / "us"
    own.mkdir(parents=True)
    for folder in (mount, *own.parents[:3], own):
        if folder.is_relative_to(mount):
            (folder / "cgroup.controllers").write_text("cpu memory pids")
            (folder / "cgroup.subtree_control").touch()
            (folder / "cgroup.procs").touch()
    monkeypatch.setattr(cgroup, "_mounts", lambda: [["cgroup2", str(mount), "cgroup2", "rw", "0", "0"]])
    real_read = cgroup._read
    monkeypatch.setattr(
        cgroup,
        "_read",
        lambda path: "0::/user.slice/user.service/app.slice/us\n" if path == "/proc/self/cgroup" else real_read(path),
    )
    allowed = mount / "user.slice" / "user.service"
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).is_relative_to(allowed))

    def make(directory: str) -> bool:
        """A kernel makes a group's files with it."""
        path = Path(directory)
        if not path.parent.is_dir():
            return False
        path.mkdir(exist_ok=True)
        for name in (*FILES, "cgroup.subtree_control"):
            (path / name).touch()
        return True

    monkeypatch.setattr(cgroup, "_make", make)
    monkeypatch.setattr(cgroup, "_write", as_a_kernel(cgroup._write))
    return allowed


def test_delegated_groups_are_made_in_the_topmost_place_and_enforce_all(unified: Path) -> None:
    directories, enforced = cgroup.open_groups("tag", 1 << 30, 1.5, 100)
    assert directories == [str(unified / "oubliette" / "tag")]
    assert enforced == ["memory", "pids", "cpus"]
    group = unified / "oubliette" / "tag"
    assert [(group / name).read_text() for name in FILES[1:5]] == [str(1 << 30), "0", "100", "150000 100000"]
    assert "cpu" in (unified / "cgroup.subtree_control").read_text()
    assert cgroup.join_groups(directories, 4711)
    assert (group / "cgroup.procs").read_text() == "4711"
    (group / "memory.current").write_text("5000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 2000\n")
    (group / "pids.current").write_text("7\n")
    assert cgroup.usage(directories) == {"memory_bytes": 3000, "pids": 7}


def test_what_the_kernel_does_not_take_is_not_claimed(unified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = cgroup._write
    monkeypatch.setattr(
        cgroup, "_write", lambda path, value: False if path.endswith("cpu.max") else real_write(path, value)
    )
    assert cgroup.open_groups("tag", 1 << 30, 1.5, 100)[1] == ["memory", "pids"]
    monkeypatch.setattr(cgroup, "_write", lambda _path, _value: False)
    assert cgroup.open_groups("other", 1 << 30, 1.5, 100) == ([], [])
    assert not cgroup.join_groups([str(unified)], 4711)


def test_without_any_right_there_are_no_groups_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "_mounts", lambda: [["cgroup", "/nowhere/memory", "cgroup", "rw,memory", "0", "0"]])
    assert cgroup.open_groups("tag", 1 << 30, 1.0, 10) == ([], [])
    monkeypatch.setattr(cgroup, "_mounts", list)
    assert cgroup.open_groups("tag", 1 << 30, 1.0, 10) == ([], [])
    assert cgroup.usage([]) == {}
    cgroup.remove_groups(["/nowhere/at/all"])
