"""Git as it is used on trees that an agent has touched: always inside the workspace's sandbox, never on the host.

The workspace's own ``.git`` belongs to the agent and is not looked at. A shadow repository in the agent's state keeps
a tree object for each snapshot; it lies where the agent can write, so every answer is untrusted, bounded and parsed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from oubliette.core.model import Json
from oubliette.errors import ContainerError
from oubliette.runtime.base import ExecResult

SHADOW = "/state/snapshots.git"
"""Where the shadow repository is, inside."""

MAX_FILES = 500
"""So many changed files are listed; more are said to be there."""

MAX_PATCH_BYTES = 512 << 10
"""The most that ``patch`` ever returns: an exec's output travels in one line of the relay (1 MiB, base64)."""

SNAPSHOT_SECONDS = 120.0
DIFF_SECONDS = 60.0

_LISTING_BYTES = 400_000
_BIG_FILE_MIB = 64
"""Larger files are left out of snapshots: the shadow repository must not double a disk full of data."""

_TREE = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_CHANGES = {"A": "added", "D": "deleted", "M": "modified", "T": "modified"}

GIT_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_CEILING_DIRECTORIES": "/",
}

# Attributes in a repository's own info/ win over those in its tree. There an encoding that a file does not have would
# end ``git add`` for all files, and ``-diff`` would hide changes.
_PLAIN = "* !filter !text !eol !crlf !working-tree-encoding !ident !diff !merge"

# Arguments: shadow repository, index, work tree. The index is a copy (with its time stamp: git tells "changed in the
# same tick" by it), so that two sessions of one workspace can take snapshots at once without waiting for a lock.
# Files that cannot be read or added are left out: a snapshot of the rest is worth more than none.
_SNAPSHOT = f"""
set -eu
shadow=$1 index=$1/$2 tree=$3
if [ ! -f "$shadow/HEAD" ]; then
  fresh=$shadow.$$
  git init --quiet --bare --template= "$fresh" >&2
  mv "$fresh" "$shadow" 2>/dev/null || true
  [ ! -d "$shadow/$(basename "$fresh")" ] || rm -rf "$shadow/$(basename "$fresh")"
  rm -rf "$fresh"
fi
mkdir -p "$shadow/info"
echo "{_PLAIN}" > "$shadow/info/attributes"
cd "$tree"
mine=$index.$$
trap 'rm -f "$mine" "$mine.lock" "$mine.skip"' EXIT
[ ! -f "$index" ] || cp -p "$index" "$mine"
find . -xdev -name .git -prune -o -type f -size +{_BIG_FILE_MIB * 2048} -print 2>/dev/null | head -n 1000 |
  sed -e 's/[][*?\\\\ #!]/\\\\&/g' -e 's/^\\.//' > "$mine.skip"
export GIT_DIR="$shadow" GIT_WORK_TREE="$tree" GIT_INDEX_FILE="$mine"
g() {{
  git -c core.bare=false -c core.fsmonitor=false -c core.hooksPath=/dev/null -c core.autocrlf=false \\
    -c core.attributesFile=/dev/null -c core.excludesFile="$mine.skip" -c core.compression=1 -c gc.auto=0 \\
    -c core.preloadIndex=true -c advice.addEmbeddedRepo=false "$@"
}}
g add --all --ignore-errors -- . >/dev/null 2>&1 || true
g write-tree
mv "$mine" "$index"
"""

# Arguments: shadow repository, limit, the two trees, options. In a pipeline only the last status counts, so the trees
# are looked for first: a missing one must not look like "nothing changed".
_TREES = """
set -eu
export GIT_DIR="$1"
limit=$2 before=$3 after=$4
shift 4
git cat-file -e "$before^{tree}"
git cat-file -e "$after^{tree}"
"""
_DIFF = _TREES + 'git -c core.quotePath=false diff-tree -r "$@" "$before" "$after" -- | head -c "$limit"'
_PATCH = _TREES + (
    'git -c core.quotePath=false diff-tree -r -p "$@" "$before" "$after" -- | { head -c "$limit"; wc -c >&2; }'
)


class Exec(Protocol):
    """Runs a command inside a container. A time-out is a result; raises ContainerError when there is no container."""

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        stdin: bytes = b"",
        timeout_seconds: float,
        max_output_bytes: int,
    ) -> ExecResult: ...


@dataclass(frozen=True, slots=True)
class Changes:
    """``files`` as SHAPES' FileChange, by path; ``truncated``: there are more."""

    files: Sequence[Json]
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Patch:
    """A unified diff; ``size_bytes`` is all of it, ``truncated`` says that ``text`` is only its beginning."""

    text: str
    size_bytes: int
    truncated: bool = False


class Snapshots:
    """States of the work trees of one container, through a callable that runs commands inside it."""

    def __init__(self, run: Exec, shadow: str = SHADOW) -> None:
        self._run = run
        self._shadow = shadow

    async def snapshot(self, workspace_dir: str) -> str:
        """The hash of the tree as it is now (ignored files, files over 64 MiB and unreadable ones left out; a
        repository inside counts as its commit). Raises ContainerError."""
        index = "index-" + hashlib.sha256(workspace_dir.encode()).hexdigest()[:16]
        result = await self._sh(
            "take a snapshot", _SNAPSHOT, [self._shadow, index, workspace_dir], SNAPSHOT_SECONDS, 64 << 10
        )
        return _tree(result.stdout.decode("ascii", "replace").strip())

    async def changes(self, before: str, after: str) -> Changes:
        """What differs between two snapshots, at most 500 files. Raises ContainerError."""
        if before == after:
            return Changes(())
        options = ["-z", "--raw", "--numstat", "--abbrev=8", "--no-renames", "--no-ext-diff", "--no-textconv"]
        result = await self._sh(
            "list changed files",
            _DIFF,
            [self._shadow, str(_LISTING_BYTES), _tree(before), _tree(after), *options],
            DIFF_SECONDS,
            2 * _LISTING_BYTES,
        )
        return _parse_changes(result.stdout, cut=len(result.stdout) >= _LISTING_BYTES)

    async def patch(self, before: str, after: str, max_bytes: int) -> Patch:
        """The difference between two snapshots as a unified diff. Raises ContainerError."""
        if before == after:
            return Patch("", 0)
        limit = min(max_bytes, MAX_PATCH_BYTES)
        options = ["--no-color", "--no-ext-diff", "--no-textconv", "--find-renames"]
        result = await self._sh(
            "make a patch",
            _PATCH,
            [self._shadow, str(limit), _tree(before), _tree(after), *options],
            DIFF_SECONDS,
            2 * MAX_PATCH_BYTES,
        )
        rest = result.stderr.decode("ascii", "replace").split()
        size = len(result.stdout) + (int(rest[-1]) if rest and rest[-1].isdigit() and len(rest[-1]) < 16 else 0)
        return Patch(result.stdout.decode("utf-8", "replace"), size, truncated=size > len(result.stdout))

    async def _sh(
        self, what: str, script: str, args: Sequence[str], timeout_seconds: float, max_output_bytes: int
    ) -> ExecResult:
        result = await self._run(
            ["sh", "-c", script, "sh", *args],
            env=GIT_ENV,
            cwd="/",
            timeout_seconds=timeout_seconds,
            max_output_bytes=max_output_bytes,
        )
        if result.timed_out:
            raise ContainerError(f"{what}: not done after {timeout_seconds:g} s")
        if result.exit_code != 0:
            said = result.stderr.decode("utf-8", "replace").strip()[-300:]
            raise ContainerError(f"{what}: git ended with {result.exit_code}: {said}")
        return result


def _tree(text: str) -> str:
    if _TREE.fullmatch(text) is None:
        raise ContainerError(f"the sandbox's git answered {text[:80]!r} where a tree's hash was due")
    return text


def _parse_changes(output: bytes, *, cut: bool) -> Changes:
    """First ``--raw`` (``:… status NUL path NUL``), then ``--numstat`` records (``added TAB removed TAB path NUL``).

    Whatever else is in there is skipped: the repository is the agent's.
    """
    records = output.split(b"\0")
    records.pop()  # what follows the last NUL: nothing, or a record that was cut
    files: dict[bytes, Json] = {}
    truncated = False
    position = 0
    while position + 1 < len(records) and records[position].startswith(b":"):
        status, path = records[position].rpartition(b" ")[2][:1], records[position + 1]
        position += 2
        if len(files) >= MAX_FILES:
            truncated = True
            continue
        change = _CHANGES.get(status.decode("ascii", "replace"), "modified")
        files[path] = {"path": path.decode("utf-8", "replace"), "change": change}
    truncated = truncated or (cut and position >= len(records) - 1)  # cut within the list of files itself
    for record in records[position:]:
        added, _, rest = record.partition(b"\t")
        removed, _, path = rest.partition(b"\t")
        if path in files and _is_count(added) and _is_count(removed):
            files[path] |= {"added": int(added), "removed": int(removed)}
    return Changes(list(files.values()), truncated)


def _is_count(text: bytes) -> bool:
    """Binary files have ``-``."""
    return text.isdigit() and len(text) < 16
