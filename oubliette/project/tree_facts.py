"""What can be said of a work tree without running anything: its size, and which commit it is on.

An agent may have written all of it: it is read through ``files``, bounded, and only what looks right is passed on.
Functions block: call them in a thread.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from oubliette.core.model import Json
from oubliette.errors import RequestError
from oubliette.project import files
from oubliette.project.walk import Bounds

MAX_ENTRIES = 500_000
"""Of one tree; a larger one's size is not told."""

_BRANCH = re.compile(rb"ref: refs/heads/([A-Za-z0-9_][A-Za-z0-9._/@+-]{0,199})\n?")
_COMMIT = re.compile(rb"([0-9a-f]{40}(?:[0-9a-f]{24})?)\n?")
_REF_BYTES = 300
_PACKED_BYTES = 1 << 20


def facts(roots: Mapping[str, Path], max_seconds: float) -> Mapping[str, Json]:
    """SHAPES' ``size_bytes`` and ``git`` (branch, commit) of each tree, by its key, as far as they can be told in that
    time."""
    until = time.monotonic() + max_seconds
    found: dict[str, Json] = {}
    for key, root in roots.items():
        left = until - time.monotonic()
        if left <= 0:
            break
        found[key] = _facts(root, Bounds(entries=MAX_ENTRIES, seconds=left))
    return found


def _facts(root: Path, bounds: Bounds) -> Json:
    shape: Json = {}
    git = head(root)
    if git:
        shape["git"] = git
    with suppress(OSError):
        size = files.measure(root, bounds)
        if size.complete:
            shape["size_bytes"] = size.size_bytes
    return shape


def head(root: Path) -> Json:
    """``branch`` and ``commit`` that the tree's repository is on; empty when there is none, or it is an odd one."""
    told = _read(root, ".git/HEAD", _REF_BYTES)
    commit = _COMMIT.fullmatch(told)
    if commit is not None:
        return {"commit": commit[1].decode()}
    branch = _BRANCH.fullmatch(told)
    if branch is None:
        return {}
    name = branch[1].decode()
    found = _COMMIT.fullmatch(_read(root, f".git/refs/heads/{name}", _REF_BYTES)) or _packed(root, branch[1])
    return {"branch": name, **({"commit": found[1].decode()} if found is not None else {})}


def _packed(root: Path, branch: bytes) -> re.Match[bytes] | None:
    listed = _read(root, ".git/packed-refs", _PACKED_BYTES)
    return re.search(rb"^([0-9a-f]{40}(?:[0-9a-f]{24})?) refs/heads/" + re.escape(branch) + rb"$", listed, re.MULTILINE)


def _read(root: Path, path: str, max_bytes: int) -> bytes:
    """Nothing where there is no such file, or no path that could be one."""
    try:
        return files.read(root, path, max_bytes).data
    except RequestError:
        return b""
