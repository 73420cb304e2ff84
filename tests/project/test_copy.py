from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from oubliette.errors import RequestError
from oubliette.project import files
from oubliette.project.copy import copy_tree
from oubliette.project.walk import Bounds
from tests.project.test_files import NOBODY, ROOT, hostile, nest

GIB = 1 << 30


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.txt").write_text("the key")
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "src" / "empty").mkdir(parents=True)
    (root / "a.txt").write_text("hello")
    (root / "src" / "run.sh").write_text("#!/bin/sh\n")
    (root / "src" / "run.sh").chmod(0o755)
    os.utime(root / "a.txt", ns=(1_000_000_001, 2_000_000_003))
    return root


def test_a_copy_has_contents_modes_and_times_of_the_original(tree: Path, tmp_path: Path) -> None:
    copied = copy_tree(tree, tmp_path / "copy", max_bytes=GIB)
    assert (copied.files, copied.skipped) == (2, 0)
    assert (tmp_path / "copy" / "a.txt").read_text() == "hello"
    assert (tmp_path / "copy" / "a.txt").stat().st_mtime_ns == 2_000_000_003
    assert stat.S_IMODE((tmp_path / "copy" / "src" / "run.sh").stat().st_mode) == 0o755
    assert (tmp_path / "copy" / "src" / "empty").is_dir()


def test_a_copy_takes_links_as_links_and_leaves_out_what_is_no_file(tree: Path, outside: Path, tmp_path: Path) -> None:
    hostile(tree, outside)
    copied = copy_tree(tree, tmp_path / "copy", max_bytes=GIB)
    made = set(os.listdir(tmp_path / "copy"))
    assert not made & {"fifo", "socket", "device"}
    assert copied.skipped == (3 if ROOT else 2)
    assert os.readlink(tmp_path / "copy" / "link-dir") == str(outside)
    assert os.readlink(tmp_path / "copy" / "src" / "link-etc") == "/etc"
    assert stat.S_IMODE((tmp_path / "copy" / "setuid").stat().st_mode) == 0o755
    assert (tmp_path / "copy" / "hard").stat().st_nlink == 1
    (tmp_path / "copy" / "a.txt").write_text("changed")
    assert (tree / "a.txt").read_text() == "hello"


def test_a_copy_is_as_deep_as_the_original(tmp_path: Path) -> None:
    root = tmp_path / "deep"
    root.mkdir()
    nest(root, 2000)
    copy_tree(root, tmp_path / "copy", max_bytes=GIB)
    assert files.measure(tmp_path / "copy").entries == files.measure(root).entries == 2002
    assert files.delete(root)
    assert files.delete(tmp_path / "copy")


def test_a_copy_that_would_be_too_large_stops(tree: Path, tmp_path: Path) -> None:
    (tree / "big").write_bytes(os.urandom(3 << 20))
    with pytest.raises(RequestError) as caught:
        copy_tree(tree, tmp_path / "copy", max_bytes=1 << 20)
    assert caught.value.code == "too_large"
    with pytest.raises(RequestError) as caught:
        copy_tree(tree, tmp_path / "another", max_bytes=GIB, bounds=Bounds(entries=2))
    assert caught.value.code == "too_large"


def test_holes_stay_holes(tree: Path, tmp_path: Path) -> None:
    with (tree / "sparse").open("wb") as file:
        file.truncate(1 << 34)
        file.seek(1 << 33)
        file.write(b"middle")
    copied = copy_tree(tree, tmp_path / "copy", max_bytes=1 << 26)
    made = tmp_path / "copy" / "sparse"
    assert made.stat().st_size == 1 << 34
    assert made.stat().st_blocks * 512 < 1 << 20
    assert copied.size_bytes < 1 << 20
    with made.open("rb") as file:
        file.seek(1 << 33)
        assert file.read(6) == b"middle"


def test_a_copy_never_overwrites(tree: Path, outside: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    target.mkdir()
    (target / "a.txt").symlink_to(outside / "secret.txt")
    with pytest.raises(FileExistsError):
        copy_tree(tree, target, max_bytes=GIB)
    assert (outside / "secret.txt").read_text() == "the key"


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
def test_a_copy_may_belong_to_somebody_else(tree: Path, outside: Path, tmp_path: Path) -> None:
    hostile(tree, outside)
    copy_tree(tree, tmp_path / "copy", max_bytes=GIB, owner=NOBODY)
    for folder, directories, names in os.walk(tmp_path / "copy"):
        for name in [*directories, *names, "."]:
            assert os.lstat(Path(folder) / name).st_uid == NOBODY
    assert outside.stat().st_uid == 0


def test_a_copy_asks_now_and_then_whether_there_is_room(tree: Path, tmp_path: Path) -> None:
    (tree / "big").write_bytes(b"x" * (130 << 20))
    for number in range(3000):
        (tree / f"{number}").write_text("")
    asked: list[int] = []

    def room() -> None:
        asked.append(1)

    copy_tree(tree, tmp_path / "copy", max_bytes=GIB, room=room)
    assert len(asked) >= 4

    def full() -> None:
        raise RequestError("storage_full", "The disk is nearly full.")

    with pytest.raises(RequestError, match="nearly full"):
        copy_tree(tree, tmp_path / "none", max_bytes=GIB, room=full)
    assert not (tmp_path / "none").exists()


def test_a_link_that_is_none_any_more_when_it_is_read_is_left_out(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "link").symlink_to("a.txt")

    def changed(name: str, *, dir_fd: int) -> str:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "readlink", changed)
    copied = copy_tree(tree, tmp_path / "copy", max_bytes=GIB)
    assert (copied.skipped, copied.files) == (1, 2)
