from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from oubliette.errors import RequestError
from oubliette.project import files
from oubliette.project.globs import Glob
from oubliette.project.walk import Bounds, Entered, Found, Left, TreeChangedError, open_root, walk

ROOT = os.geteuid() == 0
NOBODY = 65534


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Something outside the tree that nothing may reach."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("the key")
    return outside


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "src" / "deep").mkdir(parents=True)
    (root / "a.txt").write_text("hello")
    (root / "src" / "b.py").write_text("print(1)\n")
    (root / "src" / "deep" / "c.py").write_text("x")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("[core]")
    return root


def hostile(root: Path, outside: Path) -> None:
    """Everything an agent may leave in its tree."""
    (root / "link-file").symlink_to(outside / "secret.txt")
    (root / "link-dir").symlink_to(outside)
    (root / "link-up").symlink_to("..")
    (root / "link-self").symlink_to("link-self")
    (root / "src" / "link-etc").symlink_to("/etc")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(root)
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
    if ROOT:
        os.mknod(root / "device", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (root / "setuid").write_text("x")
    (root / "setuid").chmod(0o6755)
    os.link(root / "a.txt", root / "hard")


def nest(root: Path, depth: int) -> None:
    """Directories in directories, deeper than any path may be long."""
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("leaf", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    os.close(here)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> object:
    before = descriptors()
    yield
    assert descriptors() <= before  # fewer: what earlier tests left to the garbage collector


# --- reading


def test_a_regular_file_is_read_up_to_its_bound(tree: Path) -> None:
    whole = files.read(tree, "src/b.py", 100)
    assert (whole.data, whole.size_bytes, whole.truncated) == (b"print(1)\n", 9, False)
    start = files.read(tree, "./src//b.py", 5)
    assert (start.data, start.size_bytes, start.truncated) == (b"print", 9, True)


@pytest.mark.parametrize(
    "path", ["", ".", "/etc/passwd", "../outside/secret.txt", "src/../../x", "a\0b", "x/" * 300, "y" * 5000, "\udc80"]
)
def test_a_path_that_leads_out_is_refused(tree: Path, path: str) -> None:
    with pytest.raises(RequestError) as caught:
        files.read(tree, path, 10)
    assert (caught.value.code, caught.value.field) == ("invalid_argument", "path")


@pytest.mark.parametrize(
    "path",
    ["link-file", "link-dir/secret.txt", "link-up/outside/secret.txt", "link-self", "src/link-etc/passwd", "fifo",
     "socket", "device", "src", "nothing", "a.txt/b"],
)  # fmt: skip
async def test_only_regular_files_are_read_and_no_link_is_followed(tree: Path, secret: Path, path: str) -> None:
    hostile(tree, secret)
    with trio.fail_after(5), pytest.raises(RequestError) as caught:
        await trio.to_thread.run_sync(files.read, tree, path, 1000)
    assert caught.value.code == "not_found"
    assert str(caught.value) == "There is no such file in the workspace."


def test_a_root_that_was_replaced_by_a_link_is_not_followed(tmp_path: Path, secret: Path) -> None:
    root = tmp_path / "workspace"
    root.symlink_to(secret)
    with pytest.raises(RequestError):
        files.read(root, "secret.txt", 10)
    with pytest.raises(NotADirectoryError):
        files.list_files(root)
    with pytest.raises(NotADirectoryError):
        files.measure(root)
    assert files.delete(root)
    assert not root.is_symlink()
    assert (secret / "secret.txt").read_text() == "the key"


# --- listing


def test_files_are_listed_by_glob_without_git(tree: Path, secret: Path) -> None:
    def paths(pattern: str) -> list[str]:
        return [entry.path for entry in files.list_files(tree, pattern).entries]

    assert paths("**") == ["a.txt", "src", "src/b.py", "src/deep", "src/deep/c.py"]
    assert paths("**/*.py") == ["src/b.py", "src/deep/c.py"]
    assert paths("*.py") == []
    assert paths("src/*") == ["src/b.py", "src/deep"]
    assert paths("./src/**") == ["src/b.py", "src/deep", "src/deep/c.py"]
    assert paths("src/**/c.*") == ["src/deep/c.py"]
    assert paths("[ab].txt") == ["a.txt"]
    assert paths(".git/*") == [".git/config"]
    hostile(tree, secret)
    kinds = {entry.path: entry.kind for entry in files.list_files(tree, "*").entries}
    assert kinds["link-dir"] == "symlink"
    assert kinds["fifo"] == "other"
    assert kinds["src"] == "directory"
    assert not [path for path in paths("**") if "secret" in path or "passwd" in path]


@pytest.mark.parametrize("pattern", ["", "/etc/*", "../*", "a//b", "a/../b", "x" * 1001, "**/" * 51 + "x", "a\0"])
def test_a_bad_pattern_is_refused(tree: Path, pattern: str) -> None:
    with pytest.raises(RequestError) as caught:
        files.list_files(tree, pattern)
    assert (caught.value.code, caught.value.field) == ("invalid_argument", "glob")


def test_a_listing_is_bounded_and_says_so(tree: Path) -> None:
    listing = files.list_files(tree, "**", max_entries=2)
    assert len(listing.entries) == 2
    assert listing.truncated
    assert files.list_files(tree, "**", bounds=Bounds(entries=3)).truncated
    assert files.list_files(tree, "**", bounds=Bounds(seconds=-1)).truncated
    assert not files.list_files(tree, "**").truncated


def test_what_lies_too_deep_to_be_asked_for_is_not_listed_and_that_is_said(tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    deep.mkdir()
    nest(deep, files.MAX_DEPTH + 50)
    listing = files.list_files(deep, "**")
    assert len(listing.entries) == files.MAX_DEPTH
    assert listing.truncated
    assert all(files.parts_of(entry.path) for entry in listing.entries)
    long = tmp_path / "long"
    folder = long
    for _ in range(15):
        folder = folder / ("x" * 250)
    folder.mkdir(parents=True)
    (folder / ("y" * 200)).write_text("")
    descriptor = os.open(folder, os.O_RDONLY)
    os.mkdir("z" * 250, dir_fd=descriptor)
    os.mkdir("z" * 250 + "/" + "z" * 250, dir_fd=descriptor)
    os.close(descriptor)
    listing = files.list_files(long, "**")
    assert max(len(entry.path) for entry in listing.entries) <= files.MAX_PATH
    assert (len(listing.entries), listing.truncated) == (17, True)
    assert files.delete(deep)
    assert files.delete(long)


def test_names_that_are_no_text_are_listed_as_something_that_can_be_sent(tree: Path) -> None:
    (tree / os.fsdecode(b"caf\xe9")).write_text("x")
    listed = [entry.path for entry in files.list_files(tree, "*").entries]
    assert "caf\ufffd" in listed
    assert all(path.encode() for path in listed)


def test_listing_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        files.list_files(tmp_path / "nothing")
    assert caught.value.code == "not_found"


def test_a_pattern_cannot_be_made_slow(tmp_path: Path) -> None:
    deepest = tmp_path / "tree"
    for _ in range(15):
        deepest = deepest / ("a" * 200)
    deepest.mkdir(parents=True)
    with_stars = "/".join(["**", "*a*a*a*a*a*a*a*a*b"] * 20)
    listing = files.list_files(tmp_path / "tree", with_stars, bounds=Bounds(seconds=5))
    assert listing == files.Listing([], truncated=False)


_names = st.lists(st.text("ab", min_size=1, max_size=2), min_size=1, max_size=5)
_parts = st.lists(st.sampled_from(["**", "*", "a", "b*", "?", "[a]b", "ab"]), min_size=1, max_size=5)


@given(names=_names, parts=_parts)
@settings(max_examples=300, deadline=None)
def test_a_glob_matches_as_a_plain_recursive_one_does(names: list[str], parts: list[str]) -> None:
    import fnmatch

    def plain(names: list[str], parts: list[str]) -> bool:
        if not parts:
            return not names
        if parts == ["**"]:
            return bool(names)
        if parts[0] == "**":
            return plain(names, parts[1:]) or (bool(names) and plain(names[1:], parts))
        return bool(names) and fnmatch.fnmatchcase(names[0], parts[0]) and plain(names[1:], parts[1:])

    glob = Glob("/".join(parts))
    assert glob.matches(names[:-1], names[-1]) == plain(names, parts)
    if glob.matches(names[:-1], names[-1]):
        for depth in range(1, len(names)):
            assert glob.may_match_below(names[: depth - 1], names[depth - 1])


# --- walking, measuring


def test_a_walk_visits_everything_once_parents_first(tree: Path) -> None:
    seen: list[str] = []
    with open_root(tree) as top:
        for event in walk(top, Bounds()):
            if isinstance(event, Entered):
                seen.append("/".join(event.path) + "/")
            elif isinstance(event, Found):
                seen.append("/".join([*event.path, event.name]))
            else:
                assert isinstance(event, Left)
                seen.append("up")
    assert seen[0] == "/"
    assert sorted(one for one in seen if one != "up") == sorted(
        ["/", "a.txt", "src/", "src/b.py", "src/deep/", "src/deep/c.py", ".git/", ".git/config"]
    )
    assert seen.count("up") == 4
    assert seen.index("src/") < seen.index("src/b.py") < seen.index("src/deep/c.py")


def test_a_directory_that_is_moved_away_ends_the_walk(tree: Path, secret: Path) -> None:
    with open_root(tree) as top, pytest.raises(TreeChangedError):
        events = walk(top, Bounds())
        try:
            for event in events:
                if isinstance(event, Entered) and list(event.path) == ["src", "deep"]:
                    (tree / "src" / "deep").rename(secret / "deep")
        finally:
            events.close()  # type: ignore[attr-defined]


def test_a_directory_that_became_a_link_is_not_entered(tree: Path, secret: Path) -> None:
    found: list[str] = []
    with open_root(tree) as top:
        for event in walk(top, Bounds()):
            if isinstance(event, Entered) and list(event.path) == ["src"]:
                (tree / "src" / "deep").rename(tree / "src" / "moved")
                (tree / "src" / "deep").symlink_to(secret)
            if isinstance(event, Found):
                found.append(event.name)
    assert "secret.txt" not in found


def test_the_size_counts_hard_links_once_and_follows_nothing(tree: Path, secret: Path) -> None:
    (tree / "big").write_bytes(b"x" * 1_000_000)
    alone = files.measure(tree)
    os.link(tree / "big", tree / "again")
    (secret / "huge").write_bytes(b"x" * 5_000_000)
    (tree / "link").symlink_to(secret)
    assert alone.complete
    assert 1_000_000 <= alone.size_bytes < 1_200_000
    assert files.measure(tree).size_bytes - alone.size_bytes < 100_000
    assert files.measure(tree.parent / "nothing") == files.Size(0, 0, True)
    assert not files.measure(tree, Bounds(entries=2)).complete


def test_a_sparse_file_counts_what_it_takes(tree: Path) -> None:
    with (tree / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert files.measure(tree).size_bytes < 1_000_000


def test_a_tree_deeper_than_any_path_is_measured_and_deleted(tmp_path: Path) -> None:
    root = tmp_path / "deep"
    root.mkdir()
    nest(root, 3000)
    (root / "beside").write_text("x")
    assert sys.getrecursionlimit() < 3000
    size = files.measure(root)
    assert size.complete
    assert size.entries == 3003
    assert files.delete(root)
    assert not root.exists()


# --- deleting


def test_deleting_follows_nothing_and_takes_everything(tree: Path, secret: Path) -> None:
    hostile(tree, secret)
    assert files.delete(tree)
    assert not tree.exists()
    assert (secret / "secret.txt").read_text() == "the key"
    assert files.delete(tree)  # deleting what is gone is fine


def test_a_wide_and_deep_tree_is_deleted(tmp_path: Path) -> None:
    root = tmp_path / "wide"
    for outer in range(30):
        for inner in range(20):
            (root / str(outer) / str(inner) / "x").mkdir(parents=True)
            (root / str(outer) / str(inner) / "x" / "f").write_text("x")
    assert files.delete(root)
    assert not root.exists()


def test_a_deletion_that_runs_out_of_time_goes_on_where_it_stopped(tmp_path: Path) -> None:
    root = tmp_path / "t"
    root.mkdir()
    nest(root, 200)
    assert not files.delete(root, max_seconds=-1)
    assert root.exists()
    assert files.delete(root)
    assert not root.exists()


def as_nobody(work: Callable[[], None]) -> None:
    """Run it in a child of the uid 65534 (root may do everything, which proves nothing)."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.filterwarnings("ignore:This process")  # a fork while pytest-trio's threads exist
def test_directories_without_permissions_are_measured_around_and_deleted(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    top = tmp_path / "by-nobody"
    top.mkdir()
    if ROOT:
        os.chown(top, NOBODY, NOBODY)

    def work() -> None:
        root = top / "tree"
        for mode in (0o000, 0o400, 0o100, 0o500, 0o300):
            folder = root / f"m{mode:o}" / "inner" / "most"
            folder.mkdir(parents=True)
            (folder / "f").write_text("x")
            (root / f"m{mode:o}" / "inner").chmod(mode)
            (root / f"m{mode:o}").chmod(mode)
        root.chmod(0o500)
        assert not files.measure(root).complete
        assert files.delete(root)
        assert not root.exists()

    if ROOT:
        as_nobody(work)
    else:
        work()


# --- making, giving


def test_a_directory_is_made_private_and_a_link_in_its_place_is_refused(tmp_path: Path, secret: Path) -> None:
    made = tmp_path / "data" / "p" / "w"
    files.make_directory(made)
    files.make_directory(made)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    (tmp_path / "link").symlink_to(secret)
    with pytest.raises(NotADirectoryError):
        files.make_directory(tmp_path / "link")
    assert files.is_empty(made)
    assert files.is_empty(tmp_path / "nothing")
    assert not files.is_empty(secret)


def test_a_new_file_is_written_and_an_old_one_is_not(tree: Path, secret: Path) -> None:
    files.write_file(tree, "src/new.txt", b"data")
    assert (tree / "src" / "new.txt").read_bytes() == b"data"
    hostile(tree, secret)
    for path in ("a.txt", "link-file", "link-dir/new"):
        with pytest.raises(OSError, match=r"xists|directory"):
            files.write_file(tree, path, b"x")
    assert (secret / "secret.txt").read_text() == "the key"
    assert os.listdir(secret) == ["secret.txt"]


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
def test_giving_a_tree_away_gives_links_and_not_what_they_lead_to(tree: Path, secret: Path) -> None:
    hostile(tree, secret)
    files.give(tree, NOBODY)
    for folder, directories, names in os.walk(tree):
        for name in [*directories, *names]:
            assert os.lstat(Path(folder) / name).st_uid == NOBODY
    assert (secret / "secret.txt").stat().st_uid == 0
    assert secret.stat().st_uid == 0
    assert Path("/etc").stat().st_uid == 0
    with pytest.raises(OSError, match="too large"):
        files.give(tree, NOBODY, Bounds(entries=2))
