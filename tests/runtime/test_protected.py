from __future__ import annotations

from pathlib import Path

import pytest

from oubliette.errors import ContainerError
from oubliette.runtime.base import Mount
from oubliette.runtime.protected import with_protection


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    for path in ("a/b/c", "a/d", "e"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "a" / "file").write_text("")
    return tmp_path


def added(workspace: Path, *paths: str) -> list[tuple[str, bool]]:
    mounts = [Mount(workspace, "/w", read_only=False), Mount(workspace, "/run/oubliette")]
    result = with_protection(mounts, paths)
    assert result[:2] == mounts
    for mount in result[2:]:
        assert mount.source == workspace / Path(mount.target).relative_to("/w")
    return [(mount.target, mount.read_only) for mount in result[2:]]


def test_without_protected_paths_nothing_is_added(workspace: Path) -> None:
    assert added(workspace) == []


def test_every_ancestor_is_a_mount_point_and_the_path_is_read_only(workspace: Path) -> None:
    assert added(workspace, "/w/a/b/c") == [("/w/a", False), ("/w/a/b", False), ("/w/a/b/c", True)]
    assert added(workspace, "/w/e") == [("/w/e", True)]
    assert added(workspace, "/w/a/file") == [("/w/a", False), ("/w/a/file", True)]


def test_shared_ancestors_are_mounted_once(workspace: Path) -> None:
    assert added(workspace, "/w/a/b", "/w/a/d") == [("/w/a", False), ("/w/a/b", True), ("/w/a/d", True)]


@pytest.mark.parametrize("paths", [("/w/a", "/w/a/b/c"), ("/w/a/b/c", "/w/a")])
def test_a_path_in_a_protected_one_does_not_open_it_again(workspace: Path, paths: tuple[str, ...]) -> None:
    assert added(workspace, *paths) == [("/w/a", True), ("/w/a/b", True), ("/w/a/b/c", True)]


def test_what_is_not_there_is_left_out(workspace: Path) -> None:
    assert added(workspace, "/w/x", "/w/a/x/y", "/w/e") == [("/w/e", True)]


@pytest.mark.parametrize("path", ["/w", "/w/../etc", "/w/a/../../etc", "/elsewhere", "relative", "/run/oubliette/a"])
def test_what_is_not_below_a_writable_mount_is_refused(workspace: Path, path: str) -> None:
    with pytest.raises(ContainerError):
        added(workspace, path)


def test_the_innermost_mount_counts(workspace: Path) -> None:
    inner = workspace / "e"
    (inner / "deep").mkdir()
    mounts = [Mount(workspace, "/w", read_only=False), Mount(inner, "/w/a", read_only=False)]
    assert with_protection(mounts, ["/w/a/deep"])[2:] == [Mount(inner / "deep", "/w/a/deep")]


@pytest.mark.parametrize("path", ["/w/link", "/w/link/below", "/w/a/link", "/w/dangling", "/w/dangling/x"])
def test_links_are_refused_wherever_they_stand(workspace: Path, path: str) -> None:
    for link, target in (("link", "e"), ("a/link", "/etc"), ("dangling", "/nowhere")):
        (workspace / link).symlink_to(target)
    with pytest.raises(ContainerError, match=r"symbolic link|Not a directory"):
        added(workspace, path)


def test_a_file_in_place_of_a_directory_is_refused(workspace: Path) -> None:
    with pytest.raises(ContainerError, match="Not a directory"):
        added(workspace, "/w/a/file/below")


def test_the_workspace_itself_may_be_reached_through_a_link(
    workspace: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Only what lies below the workspace is written by agents; where it lies is the operator's business."""
    link = tmp_path_factory.mktemp("home") / "link"
    link.symlink_to(workspace)
    assert with_protection([Mount(link, "/w", read_only=False)], ["/w/e"])[1:] == [Mount(link / "e", "/w/e")]
