"""Size and commit of a tree that an agent may have written, told without running git."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from oubliette.project import tree_facts
from tests.project.git_repos import ENV

COMMIT = "a" * 40


def git(where: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=where, env=ENV, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "a.txt").write_text("x" * 10_000)
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    return root


def test_a_repository_tells_its_branch_and_commit_however_git_keeps_them(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    assert tree_facts.head(repository) == {"branch": "main", "commit": commit}
    git(repository, "pack-refs", "--all")
    assert not (repository / ".git/refs/heads/main").exists()
    assert tree_facts.head(repository) == {"branch": "main", "commit": commit}
    git(repository, "checkout", "-q", "-b", "feature/x-1")
    assert tree_facts.head(repository) == {"branch": "feature/x-1", "commit": commit}
    git(repository, "checkout", "-q", "--detach")
    assert tree_facts.head(repository) == {"commit": commit}


def test_a_repository_without_a_commit_has_a_branch_and_a_tree_without_one_has_nothing(tmp_path: Path) -> None:
    assert tree_facts.head(tmp_path) == {}
    assert tree_facts.head(tmp_path / "nothing") == {}
    git(tmp_path, "init", "-q", "-b", "main")
    assert tree_facts.head(tmp_path) == {"branch": "main"}


@pytest.mark.parametrize(
    "head",
    [
        "",
        "ref: refs/heads/../../x\n",
        "ref: /etc/passwd\n",
        "ref: refs/heads/a\nb",
        "\x1b[2J",
        "x" * 5_000,
        "ref: refs/heads/-x",
    ],
)
def test_what_an_agent_wrote_there_is_passed_on_only_when_it_looks_right(tmp_path: Path, head: str) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text(head)
    (tmp_path / "x").write_text(COMMIT)
    assert "commit" not in tree_facts.head(tmp_path)
    assert set(tree_facts.head(tmp_path)) <= {"branch"}


def test_links_and_fifos_in_place_of_what_is_read_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "HEAD").write_text(COMMIT)
    for name in ("linked", "file", "fifo", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "linked" / ".git").symlink_to(outside)
    (tmp_path / "file" / ".git").mkdir()
    (tmp_path / "file" / ".git" / "HEAD").symlink_to(outside / "HEAD")
    (tmp_path / "fifo" / ".git").mkdir()
    os.mkfifo(tmp_path / "fifo" / ".git" / "HEAD")
    (tmp_path / "folder" / ".git" / "HEAD").mkdir(parents=True)
    for name in ("linked", "file", "fifo", "folder"):
        assert tree_facts.head(tmp_path / name) == {}, name


def test_sizes_are_told_of_as_many_trees_as_there_is_time_for(repository: Path, tmp_path: Path) -> None:
    found = tree_facts.facts({"a": repository, "b": tmp_path / "nothing"}, 10)
    assert found["a"]["size_bytes"] >= 10_000
    assert found["a"]["git"]["branch"] == "main"
    assert found["b"] == {"size_bytes": 0}
    assert tree_facts.facts({"a": repository}, 0) == {}
