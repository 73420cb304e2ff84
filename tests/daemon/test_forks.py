"""Real agents in trees of their own: forks, empty workspaces, diffs, merges and results, through the agents' tools."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.daemon.harness import Daemon, Json, open_daemon, ready, start
from tests.daemon.scripts_for_agents import below, lines, spawn, tool

pytestmark = [pytest.mark.daemon, pytest.mark.agent, pytest.mark.engine]

SETTLE_SECONDS = 150
GIT = "git -c user.name=agent -c user.email=agent@example.org"


def bash(command: str) -> str:
    return f"@tool bash {json.dumps({'command': command, 'description': 'work'})}"


@pytest.fixture
async def daemon(request: pytest.FixtureRequest, tmp_path: Path, engine_host: str) -> AsyncIterator[Daemon]:
    runtime = getattr(request, "param", "bubblewrap")
    home = tmp_path / "home"
    home.mkdir()
    config: Json = {
        "server": {"address": "127.0.0.1:0"},
        "runtime": runtime,
        "defaults": {"limits": {"max_active_sessions": 50}},
    }
    environment = {"DOCKER_HOST": engine_host} if runtime == "docker" else {}
    async with open_daemon(home, config, environment=environment) as daemon:
        yield daemon


async def say(daemon: Daemon, session_id: str, script: str) -> Json:
    """One more turn; how it ended."""
    await daemon.call("session", action="message", session_id=session_id, message=script)
    return await daemon.settle(session_id, timeout_seconds=SETTLE_SECONDS)


async def answers(daemon: Daemon, session_id: str) -> list[Json]:
    """What its Oubliette tools answered, in order: the parsed results."""
    return [
        json.loads(event["tool"]["output"]) if event["tool"]["status"] == "completed" else event["tool"]
        for event in await daemon.events(session_id)
        if event["type"] == "tool_result" and event["tool"]["name"].startswith("oubliette_")
    ]


def tree(daemon: Daemon, session: Json) -> Path:
    project: str = session["project_id"]
    return daemon.home / "data" / "projects" / project / "workspaces" / str(session["workspace_id"])


async def inside(daemon: Daemon, session: Json, command: str) -> str:
    """What a command says in the workspace of a session, run in its container."""
    done = await daemon.call(
        "container",
        action="exec",
        project_id=session["project_id"],
        workspace_id=session["workspace_id"],
        command=command,
        wait_seconds=40,
    )
    assert done["exit_code"] == 0, done
    return str(done["stdout"])


@pytest.mark.parametrize("daemon", ["bubblewrap", "docker"], indirect=True)
async def test_a_parent_forks_two_children_merges_one_and_gets_a_conflict_from_the_other(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="forks")
    begin = bash(
        f"printf 'one\\ntwo\\n' > a.txt && echo b > b.txt && git add . && {GIT} commit -qm begin && echo x > loose"
    )

    def work(name: str, change: str) -> str:
        return lines(
            bash(f"{change} && git add a.txt b.txt && {GIT} commit -qm {name} && git log --format=%s | tr '\\n' ' '"),
            bash(f"echo left > {name}.txt"),
            "@system find /state/results/",
        )

    root = await spawn(
        daemon,
        project,
        lines(
            begin,
            tool(action="spawn", message=work("first", "echo first >> a.txt"), title="first", workspace="fork"),
            tool(action="spawn", message=work("second", "echo second >> a.txt"), title="second", workspace="fork"),
            tool(action="wait"),
            "@echo-last-tool",
        ),
    )
    done = await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
    spawned = await answers(daemon, root)
    assert done["outcome"] == "completed", (done, spawned)
    first, second = await below(daemon, root)
    parent = await daemon.call("session", action="get", session_id=root, detail="full")
    assert len({first["workspace_id"], second["workspace_id"], parent["workspace_id"]}) == 3
    assert [one["workspace_created"] for one in spawned[:2]] == [True, True]
    assert [one["workspace_id"] for one in spawned[:2]] == [first["workspace_id"], second["workspace_id"]]
    for child, name in ((first, "first"), (second, "second")):
        assert f"/state/results/{child['session_id']}" in child["last_turn"]["final_text"]
        assert (tree(daemon, child) / "loose").read_text() == "x\n", "a fork is a copy as it stands"
        assert (tree(daemon, child) / "a.txt").read_text() == f"one\ntwo\n{name}\n"
        diff = await daemon.call("session", action="diff", session_id=child["session_id"])
        assert [file["path"] for file in diff["files"]] == ["a.txt", f"{name}.txt"]
        assert f"+{name}" in diff["patch"]
    assert (tree(daemon, parent) / "a.txt").read_text() == "one\ntwo\n"

    done = await say(
        daemon,
        root,
        lines(
            tool(action="merge", session_id=first["session_id"]),
            tool(action="merge", session_id=second["session_id"]),
            tool(action="diff", session_id=first["session_id"]),
            tool(action="merge", session_id=root),
        ),
    )
    assert done["outcome"] == "completed", done
    clean, conflict, diff, itself = (await answers(daemon, root))[-4:]
    assert (clean["merged"], clean["commits"], clean["conflicts"]) == (True, 1, []), clean
    assert clean["uncommitted"] == ["first.txt", "loose"]
    assert [file["path"] for file in clean["files"]] == ["a.txt"]
    assert (conflict["merged"], conflict["conflicts"]) == (False, [{"path": "a.txt", "kind": "content"}])
    assert "+first" in diff["patch"]
    assert itself["status"] == "error", "merging itself would write where its parent works"
    assert (tree(daemon, parent) / "a.txt").read_text() == "one\ntwo\nfirst\n"
    status = await inside(daemon, parent, "git status --porcelain; git log --format=%s")
    assert status == "?? loose\nfirst\nbegin\n"

    again = await daemon.call("session", action="merge", session_id=second["session_id"])
    assert again["conflicts"] == conflict["conflicts"]
    ref = f"refs/oubliette/{second['session_id']}"
    assert await inside(daemon, parent, f"git log -1 --format=%s {ref}") == "second\n"
    assert ref in again["next"]
    await daemon.call("session", action="end", session_id=root)


@pytest.mark.parametrize("isolated", [True, False])
async def test_a_child_leaves_files_that_wait_lists_and_its_parent_reads(daemon: Daemon, isolated: bool) -> None:
    project = await daemon.call("project", action="create", name="results", workspace_isolation=isolated)
    root = await spawn(
        daemon, project, lines(tool(action="spawn", message="@say hi", workspace="new"), tool(action="wait"))
    )
    done = await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
    assert done["outcome"] == "completed", done
    [child] = await below(daemon, root)
    folder = f"/state/results/{child['session_id']}"
    done = await say(
        daemon,
        child["session_id"],
        lines(
            bash(
                f"mkdir -p {folder}/deep && cd {folder} && printf 'the report' > report.md && echo 5 > deep/n.txt && "
                f"ln -s /etc/passwd link && mkfifo pipe && git -C /workspaces/{child['workspace_id']} status --short"
            ),
            "@echo-last-tool",
        ),
    )
    assert done["results"] == [{"path": "results/deep/n.txt", "bytes": 2}, {"path": "results/report.md", "bytes": 10}]
    assert await inside(daemon, child, "ls -A | grep -v '^.git$' | wc -l") == "0\n", "a new workspace is empty"

    def read(path: str) -> str:
        asked = {"action": "read", "session_id": child["session_id"], "path": path}
        return f"@tool oubliette_workspace {json.dumps(asked)}"

    done = await say(
        daemon,
        root,
        lines(tool(action="wait"), read("results/report.md"), read("results/link"), read("results/../../opencode.db")),
    )
    waited, report, link, outside = (await answers(daemon, root))[-4:]
    assert waited["sessions"][0]["results"] == [
        {"path": "results/deep/n.txt", "bytes": 2},
        {"path": "results/report.md", "bytes": 10},
    ]
    assert report["text"] == "the report"
    assert (link["status"], outside["status"]) == ("error", "error")


async def test_forks_of_one_container_for_all_workspaces_are_trees_of_their_own_too(daemon: Daemon) -> None:
    project = await daemon.call("project", action="create", name="shared", workspace_isolation=False)
    root = await spawn(
        daemon,
        project,
        lines(
            bash(f"echo a > a.txt && git add . && {GIT} commit -qm begin"),
            tool(
                action="spawn",
                message=bash(
                    f"echo b >> a.txt && head -c 5000000 /dev/urandom > big && git add . && {GIT} commit -qm fork"
                ),
                workspace="fork",
            ),
            tool(action="wait"),
        ),
    )
    await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
    [child] = await below(daemon, root)
    parent = await daemon.call("session", action="get", session_id=root)
    assert (tree(daemon, parent) / "a.txt").read_text() == "a\n"
    merged = await daemon.call("session", action="merge", session_id=child["session_id"])
    assert (merged["merged"], merged["commits"], merged["uncommitted"]) == (True, 1, []), merged
    assert (tree(daemon, parent) / "a.txt").read_text() == "a\nb\n"
    assert (tree(daemon, parent) / "big").read_bytes() == (tree(daemon, child) / "big").read_bytes()


HOSTILE = r"""
import os, socket, subprocess
open("plain.txt", "w").write("plain\n")
os.symlink("/etc", "to-etc"); os.symlink("../../../../../../..", "up"); os.symlink("nowhere", "dangling")
os.mkfifo("fifo"); socket.socket(socket.AF_UNIX).bind("socket")
with open("sparse", "wb") as file:
    file.truncate(1 << 40); file.seek(1 << 39); file.write(b"middle")
open("setuid", "w").write("x"); os.chmod("setuid", 0o4755)
spy = "#!/bin/sh\necho ran >> %(ran)s\n"
os.makedirs(".git/hooks", exist_ok=True)
for name in ("post-checkout", "post-merge", "pre-commit", "post-index-change"):
    open(".git/hooks/" + name, "w").write(spy); os.chmod(".git/hooks/" + name, 0o755)
open("spy", "w").write(spy); os.chmod("spy", 0o755)
for key in ("core.fsmonitor", "filter.x.clean", "filter.x.smudge", "filter.x.process", "diff.external"):
    subprocess.run(["git", "config", key, os.path.abspath("spy")], check=True)
open(".gitattributes", "w").write("* filter=x diff=x\n")
open(".git/index.lock", "w").close()
os.mkdir("deep"); os.chdir("deep")
for _ in range(3000):
    os.mkdir("d"); os.chdir("d")
"""


async def test_a_hostile_tree_is_copied_and_nothing_of_it_runs_on_the_host(daemon: Daemon, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    project = await daemon.call("project", action="create", name="hostile")
    program = HOSTILE.replace("%(ran)s", str(ran))
    root = await spawn(
        daemon,
        project,
        lines(
            bash(f"cat > /tmp/make.py <<'END'\n{program}END\npython3 /tmp/make.py"),
            tool(action="spawn", message=bash("ls -A && cat plain.txt"), workspace="fork"),
            tool(action="wait"),
        ),
    )
    done = await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
    [child] = await below(daemon, root)
    assert (done["outcome"], child["last_turn"]["outcome"]) == ("completed", "completed"), (done, child)
    copy = tree(daemon, child)
    assert (copy / "plain.txt").read_text() == "plain\n"
    assert [(copy / name).readlink() for name in ("to-etc", "dangling")] == [Path("/etc"), Path("nowhere")]
    assert not any((copy / name).exists() or (copy / name).is_symlink() for name in ("fifo", "socket"))
    assert not (copy / ".git" / "index.lock").exists()
    sparse = (copy / "sparse").stat()
    assert (sparse.st_size, sparse.st_blocks * 512 < 1 << 20) == (1 << 40, True)
    assert (copy / "setuid").stat().st_mode & 0o7777 == 0o755
    measure = "import os\nn=0\nos.chdir('deep')\nwhile os.path.isdir('d'):\n    os.chdir('d')\n    n += 1\nprint(n)"
    depth = await inside(daemon, child, f'python3 -c "{measure}"')
    assert depth == "3000\n"
    for action in ("diff", "merge"):
        await daemon.try_call("session", action=action, session_id=child["session_id"])
    assert not ran.exists(), "something of the agent's ran on the host"


async def test_a_copy_that_fails_fails_the_child_s_turn_and_says_why(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    config: Json = {
        "server": {"address": "127.0.0.1:0"},
        "runtime": "bubblewrap",
        "defaults": {"container": {"disk": "4m"}},
    }
    async with open_daemon(home, config) as daemon:
        project = await daemon.call("project", action="create", name="too much")
        root = await spawn(
            daemon,
            project,
            lines(
                bash("head -c 8000000 /dev/urandom > big"),
                tool(action="spawn", message="@say never", workspace="fork"),
                tool(action="wait"),
            ),
        )
        done = await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
        assert done["outcome"] == "completed", done
        waited = (await answers(daemon, root))[-1]
        [child] = waited["sessions"]
        assert (child["outcome"], child["error"]["code"]) == ("failed", "too_large"), child
        [row] = await below(daemon, root)
        assert not tree(daemon, row).exists()
        code, refused = await daemon.try_call("session", action="merge", session_id=row["session_id"])
        assert (code, refused["error"]["code"]) == (409, "conflict"), refused


async def test_a_daemon_that_dies_in_the_middle_of_a_copy_makes_it_anew(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    many = 40_000
    config: Json = {"server": {"address": "127.0.0.1:0"}, "runtime": "bubblewrap"}
    async with open_daemon(home, config) as daemon:
        project = await daemon.call("project", action="create", name="killed")
        fill = (
            f"for d in $(seq 1 40); do mkdir -p many/$d; (cd many/$d && seq 1 {many // 40} | split -l 1 -a 4 -); done"
        )
        count = bash("find many -type f | wc -l")
        root = await spawn(
            daemon,
            project,
            lines(
                bash("printf 'many\\n' > .gitignore; " + fill),
                tool(action="spawn", message=lines(count, "@echo-last-tool"), workspace="fork"),
                tool(action="wait"),
                "@echo-last-tool",
            ),
        )
        making = home / "data" / "projects" / project["project_id"] / "making"
        with trio.fail_after(SETTLE_SECONDS):
            while not list(making.glob("*/many/*/*")):
                await trio.sleep(0.005)
        daemon.kill()
        [half] = list(making.iterdir())
        assert len(list(half.glob("many/*/*"))) < many, "it was killed in the middle"
        assert not (making.parent / "workspaces" / half.name).exists()
        again = await ready(start(home))
        daemon.process, daemon.url, daemon.token = again.process, again.url, again.token
        await daemon.settle(root, timeout_seconds=SETTLE_SECONDS)
        [child] = await below(daemon, root)
        done = await daemon.settle(child["session_id"], timeout_seconds=SETTLE_SECONDS)
        assert (done["outcome"], str(many) in done["final_text"]) == ("completed", True), done
        assert child["workspace_id"] == half.name
        assert list(making.iterdir()) == []
