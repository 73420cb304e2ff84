"""Runs IN the sandbox of a workspace, as ``python3 -I -c <this file>``: what ``merge`` asks of the git in there.

Standard library alone, Python 3.9. Commands: ``look TREE``, ``bundle TREE MAX_BYTES``, ``merge TREE``. What it needs
besides comes in on stdin, a line of JSON first; what it found goes out the same way; bundles follow their line as they
are. Whoever reads the answer must not believe it: an agent may have had its hands in the repository, or in python.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

MAX_LISTED = 500
MAX_KNOWN = 2000
"""So many of the newest commits are told to the other side, which leaves out those that it knows."""
MAX_BOUNDARY = 100
ATTEMPTS = 5
PAUSE_SECONDS = 0.4
PREFIX = "merge-"
KEPT_SECONDS = 3600

OPTIONS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.quotePath": "false",
    "core.editor": ":",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "commit.gpgSign": "false",
    "merge.autoStash": "false",
    "merge.verifySignatures": "false",
    "submodule.recurse": "false",
    "fetch.prune": "false",
}


class Refused(Exception):
    """``outcome`` says why nothing was done; ``said`` are git's words."""

    def __init__(self, outcome: str, said: str = "") -> None:
        super().__init__(outcome, said)
        self.outcome = outcome
        self.said = said


class Repository:
    """A work tree with its repository, and the git that is called in it."""

    def __init__(self, tree: str) -> None:
        self.tree = tree
        self.env = {**os.environ, "GIT_CEILING_DIRECTORIES": os.path.dirname(tree.rstrip("/"))}
        if self.run(["rev-parse", "--is-inside-work-tree"])[1].strip() != b"true":
            raise Refused("not_git")

    def command(self, args: Sequence[str]) -> list[str]:
        return ["git", *(part for pair in OPTIONS.items() for part in ("-c", "=".join(pair))), *args]

    def run(
        self, args: Sequence[str], stdin: bytes = b"", env: dict[str, str] | None = None, cwd: str | None = None
    ) -> tuple[int, bytes, str]:
        """Exit code, output, what it complained about."""
        done = subprocess.run(
            self.command(args), cwd=cwd or self.tree, env={**self.env, **(env or {})}, input=stdin, capture_output=True
        )
        return done.returncode, done.stdout, done.stderr.decode("utf-8", "replace")

    def ask(self, args: Sequence[str], stdin: bytes = b"", **more: Any) -> bytes:
        """Its output. Raises Refused ``failed`` when it fails."""
        code, out, said = self.run(args, stdin, **more)
        if code != 0:
            raise Refused("failed", f"git {args[0]}: {said.strip()[-1000:]}")
        return out

    def commit(self, name: str) -> str:
        """Its hash; empty when there is none."""
        code, out, _ = self.run(["rev-parse", "--quiet", "--verify", name + "^{commit}"])
        return out.decode("ascii", "replace").strip() if code == 0 else ""

    def is_ancestor(self, one: str, other: str) -> bool:
        return self.run(["merge-base", "--is-ancestor", one, other])[0] == 0

    def dirty(self, untracked: str) -> list[str]:
        out = self.ask(["status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=" + untracked])
        return [text(entry[3:]) for entry in out.split(b"\0") if entry]


def text(path: bytes) -> str:
    """A path as the file system is asked for it; who is told makes it readable."""
    return path.decode("utf-8", "surrogateescape")


def look(repository: Repository, asked: dict[str, Any]) -> dict[str, Any]:
    """What the one that gets the commits has: its newest ones."""
    head = repository.commit("HEAD")
    if not head:
        return {"outcome": "looked", "head": "", "known": []}
    known = repository.ask(["rev-list", f"--max-count={MAX_KNOWN}", "HEAD"]).decode("ascii", "replace").split()
    return {"outcome": "looked", "head": head, "known": known}


def bundle(repository: Repository, asked: dict[str, Any], max_bytes: int, scratch: str) -> tuple[dict[str, Any], str]:
    """The commits of HEAD that the other side does not know, as a file; and what is not committed."""
    head = repository.commit("HEAD")
    dirty = repository.dirty("normal")
    found: dict[str, Any] = {
        "outcome": "nothing",
        "head": head,
        "commits": 0,
        "uncommitted": dirty[:MAX_LISTED],
        "uncommitted_total": len(dirty),
    }
    if not head:
        return found, ""
    asked_for = "\n".join(one for one in asked["known"]).encode()
    checked = repository.ask(["cat-file", "--batch-check=%(objectname) %(objecttype)"], asked_for + b"\n")
    shared = [line.split()[0] for line in checked.decode("ascii", "replace").splitlines() if line.endswith(" commit")]
    listed = repository.ask(
        ["rev-list", "--boundary", "--stdin"], "\n".join([head, *("^" + one for one in shared)]).encode() + b"\n"
    )
    lines = listed.decode("ascii", "replace").split()
    boundary = ["^" + line[1:] for line in lines if line.startswith("-")]
    found["commits"] = len(lines) - len(boundary)
    if not found["commits"]:
        return found, ""
    if len(boundary) > MAX_BOUNDARY:
        boundary = []
    path = os.path.join(scratch, "bundle")
    with open(path, "wb") as file:
        maker = subprocess.Popen(
            repository.command(["bundle", "create", "--quiet", "-", "HEAD", *boundary]),
            cwd=repository.tree,
            env=repository.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert maker.stdout is not None and maker.stderr is not None
        left = max_bytes
        while left >= 0:
            data = maker.stdout.read(1 << 16)
            if not data:
                break
            left -= len(data)
            file.write(data)
        maker.stdout.close()
        if left < 0:
            maker.kill()
        said = maker.stderr.read().decode("utf-8", "replace")
        code = maker.wait()
    if left < 0:
        raise Refused("too_large")
    if code != 0:
        raise Refused("failed", f"git bundle: {said.strip()[-1000:]}")
    return {**found, "outcome": "bundled", "bytes": os.path.getsize(path)}, path


def merge(repository: Repository, asked: dict[str, Any], packed: str, scratch: str) -> dict[str, Any]:
    """Fetch the bundle, work the merge out beside the work tree, and only then go forward to it."""
    ref: str = asked["ref"]
    repository.ask(["fetch", "--quiet", "--no-tags", "--no-recurse-submodules", packed, "+HEAD:" + ref])
    theirs = repository.commit(ref)
    last: dict[str, Any] = {}
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS * attempt)
        last = merge_once(repository, asked, theirs, scratch)
        if last["outcome"] not in ("moved", "locked"):
            break
    if last["outcome"] in ("merged", "nothing"):
        repository.run(["update-ref", "-d", ref, theirs])
    return last


def merge_once(repository: Repository, asked: dict[str, Any], theirs: str, scratch: str) -> dict[str, Any]:
    ours = repository.commit("HEAD")
    found: dict[str, Any] = {"outcome": "nothing", "base": ours, "head": ours, "commits": 0}
    if ours and repository.is_ancestor(theirs, ours):
        return found
    count = repository.ask(["rev-list", "--count", theirs, *(["^" + ours] if ours else [])])
    found["commits"] = int(count)
    if not ours or repository.is_ancestor(ours, theirs):
        new = theirs
    elif repository.run(["merge-base", ours, theirs])[0] != 0:
        return {**found, "outcome": "unrelated"}
    else:
        tree, conflicts = merged_tree(repository, ours, theirs, scratch)
        if conflicts:
            return {**found, "outcome": "conflicts", "conflicts": conflicts}
        new = commit_tree(repository, asked["message"], tree, ours, theirs)
    before = ours or repository.ask(["hash-object", "-t", "tree", "-w", "--stdin"]).decode("ascii").strip()
    files = changed_files(repository, before, new)
    found["files"], found["files_total"] = files[:MAX_LISTED], len(files)
    blocked = in_the_way(repository, files, asked["protected"])
    if blocked:
        return {**found, "outcome": "conflicts", "conflicts": blocked}
    return {**found, **go_to(repository, ours, new)}


def merged_tree(repository: Repository, ours: str, theirs: str, scratch: str) -> tuple[str, list[dict[str, str]]]:
    """The tree of the merge, or its conflicts; neither index nor work tree is touched."""
    code, out, said = repository.run(["merge-tree", "--write-tree", "-z", "--no-messages", ours, theirs])
    if code == 0:
        return out.split(b"\0")[0].decode("ascii").strip(), []
    if code == 1:
        return "", conflicts_of(out.split(b"\0")[1:]) or [{"path": ".", "kind": "other"}]
    if code == 128 or "usage: git merge-tree" not in said:
        raise Refused("failed", f"git merge-tree: {said.strip()[-1000:]}")
    return merged_by_files(repository, ours, theirs, scratch)


def merged_by_files(repository: Repository, ours: str, theirs: str, scratch: str) -> tuple[str, list[dict[str, str]]]:
    """For git before 2.38: file by file, in an index and an empty work tree of its own; renames are not followed."""
    place = tempfile.mkdtemp(dir=scratch)
    env = {"GIT_INDEX_FILE": os.path.join(place, "index"), "GIT_WORK_TREE": os.path.join(place, "tree")}
    env["GIT_DIR"] = text(repository.ask(["rev-parse", "--absolute-git-dir"])).rstrip("\n")
    os.mkdir(env["GIT_WORK_TREE"])
    base = repository.ask(["merge-base", ours, theirs]).split()[0].decode("ascii")
    more: dict[str, Any] = {"env": env, "cwd": env["GIT_WORK_TREE"]}
    repository.ask(["read-tree", "-i", "-m", "--aggressive", base, ours, theirs], **more)
    repository.run(["merge-index", "-o", "-q", "git-merge-one-file", "-a"], **more)
    conflicts = conflicts_of(repository.ask(["ls-files", "--unmerged", "-z"], **more).split(b"\0"))
    return ("", conflicts) if conflicts else (repository.ask(["write-tree"], **more).decode("ascii").strip(), [])


def conflicts_of(entries: Sequence[bytes]) -> list[dict[str, str]]:
    """From ``<mode> <object> <stage> TAB <path>``: which sides have the file says what the trouble is."""
    stages: dict[str, set[int]] = {}
    for entry in entries:
        facts, tab, path = entry.partition(b"\t")
        if tab:
            stages.setdefault(text(path), set()).add(int(facts.split()[-1]))
    kinds = {
        (1, 2, 3): "content",
        (2, 3): "both_added",
        (1, 2): "deleted_in_fork",
        (1, 3): "deleted_in_parent",
    }
    return [{"path": path, "kind": kinds.get(tuple(sorted(sides)), "other")} for path, sides in stages.items()]


def commit_tree(repository: Repository, message: str, tree: str, ours: str, theirs: str) -> str:
    """Signed by whom the repository is set up for, or by the one who committed here last."""
    env = {}
    if repository.run(["config", "user.email"])[0] != 0 or repository.run(["config", "user.name"])[0] != 0:
        name, email = text(repository.ask(["log", "-1", "--format=%cn%n%ce", ours])).split("\n")[:2]
        for role in ("AUTHOR", "COMMITTER"):
            env[f"GIT_{role}_NAME"], env[f"GIT_{role}_EMAIL"] = name or "Oubliette", email or "oubliette@localhost"
    made = repository.ask(["commit-tree", tree, "-p", ours, "-p", theirs, "-F", "-"], message.encode(), env=env)
    return made.decode("ascii").strip()


def changed_files(repository: Repository, before: str, after: str) -> list[dict[str, Any]]:
    """As SHAPES' FileChanges, by path."""
    options = ["-r", "--no-renames", "--no-ext-diff", "--no-textconv", "-z"]
    raw = repository.ask(["diff-tree", "--raw", *options, before, after]).split(b"\0")
    changes = {b"A": "added", b"D": "deleted"}
    files: dict[bytes, dict[str, Any]] = {
        path: {"path": text(path), "change": changes.get(facts.split()[-1][:1], "modified")}
        for facts, path in zip(raw[0::2], raw[1::2])
    }
    for record in repository.ask(["diff-tree", "--numstat", *options, before, after]).split(b"\0"):
        added, _, rest = record.partition(b"\t")
        removed, _, path = rest.partition(b"\t")
        if path in files and added.isdigit() and removed.isdigit():
            files[path].update(added=int(added), removed=int(removed))
    return list(files.values())


def in_the_way(
    repository: Repository, files: Sequence[dict[str, Any]], protected: Sequence[str]
) -> list[dict[str, str]]:
    """What must not be written: protected paths, what is changed here and not committed, files that git does not have
    (ignored ones too: git itself would overwrite those)."""
    found = []
    dirty = set(repository.dirty("no"))
    tracked = set(map(text, repository.ask(["ls-files", "-z"]).split(b"\0")))
    for file in files:
        path = file["path"]
        if any(path == one or path.startswith(one + "/") for one in protected):
            found.append({"path": path, "kind": "protected"})
        elif path in dirty or (path not in tracked and os.path.lexists(os.path.join(repository.tree, path))):
            found.append({"path": path, "kind": "uncommitted"})
    return found


def go_to(repository: Repository, ours: str, new: str) -> dict[str, Any]:
    """Forward to a commit that follows HEAD: git looks at every file first and writes then. In a session of its own:
    once it writes, nobody who gives up waiting stops it half way."""
    going = subprocess.Popen(
        repository.command(["merge", "--ff-only", "--no-overwrite-ignore", "--quiet", new]),
        cwd=repository.tree,
        env=repository.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    said = (going.communicate()[1] or b"").decode("utf-8", "replace")
    if going.returncode == 0:
        return {"outcome": "merged", "head": new}
    named = [line[1:] for line in said.splitlines() if line.startswith("\t")]
    if named:
        return {"outcome": "conflicts", "conflicts": [{"path": path, "kind": "uncommitted"} for path in named]}
    if "index.lock" in said:
        return {"outcome": "locked", "said": said.strip()[-1000:]}
    if repository.commit("HEAD") != ours:
        return {"outcome": "moved", "said": said.strip()[-1000:]}
    return {"outcome": "failed", "said": f"git merge: {said.strip()[-1000:]}"}


def forget_old(place: str) -> None:
    """What those left that were killed."""
    for name in os.listdir(place):
        path = os.path.join(place, name)
        if name.startswith(PREFIX) and time.time() - os.lstat(path).st_mtime > KEPT_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def main(args: list[str]) -> None:
    command, tree = args[0], args[1]
    asked = json.loads(sys.stdin.buffer.readline())
    forget_old(asked["scratch"])
    scratch = tempfile.mkdtemp(prefix=PREFIX, dir=asked["scratch"])
    packed = ""
    try:
        try:
            repository = Repository(tree)
            if command == "look":
                answer = look(repository, asked)
            elif command == "bundle":
                answer, packed = bundle(repository, asked, int(args[2]), scratch)
            else:
                path = os.path.join(scratch, "bundle")
                with open(path, "wb") as file:
                    shutil.copyfileobj(sys.stdin.buffer, file)
                answer = merge(repository, asked, path, scratch)
        except Refused as refused:
            answer = {"outcome": refused.outcome, "said": refused.said}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        if packed:
            with open(packed, "rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
