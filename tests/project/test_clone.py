from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from oubliette.config.server import Git
from oubliette.errors import RequestError
from oubliette.project import clone as clone_module
from oubliette.project.clone import GitCredential, clone, init_repository
from oubliette.project.remote import Remote, check_remote
from tests.project.git_repos import git, make_repository

LOCAL = Git(allow_local=True, allow_private_hosts=True)
HOST_ENV = {"PATH": os.environ["PATH"], "GIT_DIR": "/nonsense", "SECRET": "xyzzy", "LD_PRELOAD": "/nonsense"}


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "origin", {"README.md": "hello\n", "src/a.py": "x = 1\n"})


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


async def fetch(
    origin: Path, target: Path, *, branch: str | None = None, max_bytes: int = 1 << 30, timeout_seconds: float = 60
) -> None:
    await clone(
        check_remote(str(origin), LOCAL),
        target,
        LOCAL,
        branch=branch,
        max_bytes=max_bytes,
        host_env=HOST_ENV,
        timeout_seconds=timeout_seconds,
    )


async def test_a_clone_is_a_work_tree_with_its_own_objects(origin: Path, target: Path) -> None:
    await fetch(origin, target)
    assert (target / "src" / "a.py").read_text() == "x = 1\n"
    assert git(target, "rev-parse", "HEAD") == git(origin, "rev-parse", "HEAD")
    assert git(target, "status", "--porcelain") == ""
    assert not (target / ".git" / "objects" / "info" / "alternates").exists()
    assert list((target / ".git").glob("hooks/*")) == []


async def test_a_branch_is_checked_out(origin: Path, target: Path) -> None:
    git(origin, "branch", "feature/x")
    await fetch(origin, target, branch="feature/x")
    assert git(target, "branch", "--show-current") == "feature/x"


async def test_a_clone_that_fails_says_what_git_said(origin: Path, target: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        await fetch(origin, target, branch="nothing")
    assert caught.value.code == "clone_failed"
    assert "nothing" in caught.value.message
    assert "branch" in caught.value.hint
    with pytest.raises(RequestError) as caught:
        await fetch(tmp_path / "no-repository", target)
    assert caught.value.code == "clone_failed"


async def test_nothing_that_a_repository_brings_is_run(origin: Path, target: Path, tmp_path: Path) -> None:
    """Hooks, filters, file system monitors and submodules, of the origin and in its tree."""
    trap = tmp_path / "trapped"
    script = tmp_path / "trap.sh"
    script.write_text(f"#!/bin/sh\ntouch {trap}\n")
    script.chmod(0o755)
    (origin / ".gitattributes").write_text("* filter=evil\n")
    (origin / ".gitconfig").write_text(f'[filter "evil"]\n\tsmudge = {script}\n')
    (origin / ".gitmodules").write_text('[submodule "x"]\n\tpath = x\n\turl = ext::sh -c "touch trapped"\n')
    git(origin, "add", "--all")
    git(origin, "commit", "--quiet", "-m", "evil")
    for hook in ("post-checkout", "post-upload-pack", "pre-auto-gc", "reference-transaction"):
        (origin / ".git" / "hooks" / hook).write_text(script.read_text())
        (origin / ".git" / "hooks" / hook).chmod(0o755)
    with (origin / ".git" / "config").open("a") as config:
        config.write(f"[core]\n\tfsmonitor = {script}\n[uploadpack]\n\tpackObjectsHook = {script}\n")
        config.write(f'[filter "evil"]\n\tsmudge = {script}\n\trequired = true\n')
    await fetch(origin, target)
    assert (target / "README.md").read_text() == "hello\n"
    assert not trap.exists()
    assert "evil" not in (target / ".git" / "config").read_text()


async def test_the_hosts_own_configuration_and_environment_are_not_used(
    origin: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "trapped"
    home = tmp_path / "home"
    (home / "templates" / "hooks").mkdir(parents=True)
    (home / "templates" / "hooks" / "post-checkout").write_text(f"#!/bin/sh\ntouch {trap}\n")
    (home / "templates" / "hooks" / "post-checkout").chmod(0o755)
    (home / ".gitconfig").write_text(f'[init]\n\ttemplateDir = {home}/templates\n[url "/nowhere"]\n\tinsteadOf = /\n')
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(home / ".gitconfig"))
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(home / "templates"))
    await fetch(origin, target)
    assert (target / "README.md").exists()
    assert not trap.exists()


async def test_a_repository_that_is_too_large_is_refused(origin: Path, target: Path) -> None:
    (origin / "big").write_bytes(os.urandom(3 << 20))
    git(origin, "add", "big")
    git(origin, "commit", "--quiet", "-m", "big")
    with pytest.raises(RequestError) as caught:
        await fetch(origin, target, max_bytes=1 << 20)
    assert caught.value.code == "too_large"


@pytest.fixture
def fake_git(tmp_path: Path) -> Iterator[Path]:
    """A ``git`` that tells what it was given and does what the test wrote into ``body``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    body = folder / "body"
    body.write_text("exit 0\n")
    script = folder / "git"
    script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/argv\nenv > {folder}/env\n. {body}\n')
    script.chmod(0o755)
    yield folder


async def clone_with(fake_git: Path, remote: Remote, target: Path, **more: object) -> None:
    env = {**HOST_ENV, "PATH": f"{fake_git}:{os.environ['PATH']}", "https_proxy": "http://proxy:1"}
    await clone(remote, target, LOCAL, max_bytes=1 << 30, host_env=env, **more)  # type: ignore[arg-type]


TOKEN = "ghp_" + "s3cret" * 6


async def test_a_token_is_in_no_argument_and_no_variable_and_is_told_once(
    fake_git: Path, target: Path, tmp_path: Path
) -> None:
    (fake_git / "body").write_text(
        'for one in "$@"; do case "$one" in credential.https://github.com.helper=*) helper=${one#*=!};; esac; done\n'
        'for n in 1 2; do sh -c "$helper \\"\\$@\\"" sh get >> ' + f"{fake_git}/told 2>/dev/null; done\n"
        'sh -c "$helper \\"\\$@\\"" sh store >> ' + f"{fake_git}/told 2>&1\nexit 0\n"
    )
    remote = check_remote("https://github.com/o/r", LOCAL)
    await clone_with(fake_git, remote, target, credential=GitCredential("github.com", TOKEN))
    assert (fake_git / "told").read_text() == f"username=x-access-token\npassword={TOKEN}\n"
    assert TOKEN not in (fake_git / "argv").read_text()
    environment = (fake_git / "env").read_text()
    assert TOKEN not in environment
    assert "xyzzy" not in environment
    assert "LD_PRELOAD" not in environment
    assert "GIT_DIR=" not in environment
    assert "https_proxy=http://proxy:1" in environment
    assert TOKEN not in repr(GitCredential("github.com", TOKEN))
    argv = (fake_git / "argv").read_text().splitlines()
    assert argv[-3:] == ["--", "https://github.com/o/r", str(target)]


async def test_a_token_for_another_host_is_not_offered(fake_git: Path, target: Path) -> None:
    remote = check_remote("https://gitlab.com/o/r", LOCAL)
    await clone_with(fake_git, remote, target, credential=GitCredential("github.com", TOKEN))
    assert "helper=!" not in (fake_git / "argv").read_text()


async def test_a_token_is_cut_out_of_what_git_says(fake_git: Path, target: Path) -> None:
    (fake_git / "body").write_text(f'echo "fatal: cannot use {TOKEN} \\033[31m here" >&2\nexit 128\n')
    remote = check_remote("https://github.com/o/r", LOCAL)
    with pytest.raises(RequestError) as caught:
        await clone_with(fake_git, remote, target, credential=GitCredential("github.com", TOKEN))
    assert "cannot use ***" in caught.value.message
    assert TOKEN not in caught.value.message
    assert "\x1b" not in caught.value.message


def alive(pid: int) -> bool:
    """A zombie that nobody has waited for does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_clone_that_takes_too_long_is_ended_with_all_its_processes(fake_git: Path, target: Path) -> None:
    (fake_git / "body").write_text(f"sleep 600 &\necho $! > {fake_git}/pid\nwait\n")
    remote = check_remote("https://github.com/o/r", LOCAL)
    with trio.fail_after(20), pytest.raises(RequestError) as caught:
        await clone_with(fake_git, remote, target, timeout_seconds=1)
    assert caught.value.code == "timed_out"
    pid = int((fake_git / "pid").read_text())
    assert not alive(pid)


async def test_a_clone_that_grows_too_large_is_ended_while_it_runs(
    fake_git: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clone_module, "LOOK_AT_SIZE_SECONDS", 0.05)
    (fake_git / "body").write_text(f"head -c 3000000 /dev/urandom > {target}/pack\nsleep 600\n")
    with trio.fail_after(20), pytest.raises(RequestError) as caught:
        env = {"PATH": f"{fake_git}:{os.environ['PATH']}"}
        await clone(check_remote("/srv/x", LOCAL), target, LOCAL, max_bytes=1 << 20, host_env=env)
    assert caught.value.code == "too_large"


async def test_a_host_without_git_is_said_plainly(origin: Path, target: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        await clone(check_remote(str(origin), LOCAL), target, LOCAL, max_bytes=1, host_env={"PATH": str(tmp_path)})
    assert caught.value.code == "clone_failed"
    assert "Install git" in caught.value.hint


async def test_nothing_is_left_in_the_temporary_directory(
    origin: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    await fetch(origin, target)
    with trio.move_on_after(0.01):
        await fetch(origin, tmp_path / "cancelled")
    assert os.listdir(scratch) == []


def test_a_repository_made_by_hand_is_one_to_git(tmp_path: Path) -> None:
    root = tmp_path / "w"
    root.mkdir()
    init_repository(root)
    assert git(root, "status", "--porcelain", "--branch") == "## No commits yet on main"
    (root / "a").write_text("x")
    git(root, "add", "a")
    git(root, "commit", "--quiet", "-m", "first")
    assert git(root, "fsck") == ""
    if os.geteuid() == 0:
        init_repository(root, owner=65534)
        assert (root / ".git" / "HEAD").stat().st_uid == 65534
    assert stat.S_ISDIR((root / ".git").stat().st_mode)
