"""What a child leaves for its parent, looked at from outside."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from oubliette.errors import RequestError
from oubliette.project import files, results
from tests.project.test_files import nest

SESSION = "gogol_20261122_081530_1a2b3c4d"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state" / "results" / SESSION
    (folder / "deep").mkdir(parents=True)
    (folder / "report.md").write_text("report")
    (folder / "deep" / "n").write_bytes(b"\0\1")
    return tmp_path / "state"


def test_files_are_listed_with_their_sizes_and_read_by_the_same_path(state: Path) -> None:
    listed = results.list_results(state, SESSION)
    assert listed == [{"path": "results/deep/n", "bytes": 2}, {"path": "results/report.md", "bytes": 6}]
    for one in listed:
        assert results.read_result(state, SESSION, one["path"], 100).size_bytes == one["bytes"]
    assert results.read_result(state, SESSION, "report.md", 3).data == b"rep"
    assert results.inside(SESSION) == f"/state/results/{SESSION}"


def test_without_a_folder_there_is_nothing(tmp_path: Path) -> None:
    assert results.list_results(tmp_path, SESSION) == []
    assert results.list_results(tmp_path / "nowhere", SESSION) == []
    with pytest.raises(RequestError) as caught:
        results.read_result(tmp_path / "nowhere", SESSION, "report.md", 100)
    assert caught.value.code == "not_found"


def test_only_regular_files_count_and_no_link_is_followed(state: Path, tmp_path: Path) -> None:
    folder = state / "results" / SESSION
    (tmp_path / "secret").write_text("the key")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "elsewhere").symlink_to(tmp_path)
    os.mkfifo(folder / "fifo")
    os.mknod(folder / "s", stat.S_IFSOCK | 0o600)
    assert [one["path"] for one in results.list_results(state, SESSION)] == ["results/deep/n", "results/report.md"]
    for path in ("link", "elsewhere/secret", "fifo", "s", "../other/x", "/etc/passwd", "", "results"):
        with pytest.raises(RequestError):
            results.read_result(state, SESSION, path, 100)


def test_a_folder_that_is_a_link_is_none(state: Path, tmp_path: Path) -> None:
    os.rename(state / "results", tmp_path / "moved")
    (state / "results").symlink_to(tmp_path / "moved")
    assert results.list_results(state, SESSION) == []
    with pytest.raises(RequestError):
        results.read_result(state, SESSION, "report.md", 100)


def test_other_sessions_have_folders_of_their_own(state: Path) -> None:
    (state / "results" / "gogol_other").mkdir()
    (state / "results" / "gogol_other" / "x").write_text("x")
    assert len(results.list_results(state, SESSION)) == 2
    with pytest.raises(RequestError):
        results.read_result(state, SESSION, "../gogol_other/x", 100)


def test_many_files_and_deep_folders_are_bounded(state: Path) -> None:
    folder = state / "results" / SESSION
    for number in range(300):
        (folder / f"f{number:03}").write_text("")
    nest(folder, 2500)
    assert len(results.list_results(state, SESSION)) == 100
    assert files.delete(state)
