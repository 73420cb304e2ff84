"""Carrying a fork's commits into its parent's workspace: git runs in the two sandboxes, the daemon carries bytes.

What is asked for is done by ``merge_inside``, whose source is given to the sandbox's python. Its answers are untrusted:
bounded, parsed, and nothing in them is used but to be shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from oubliette.core.model import Json
from oubliette.errors import ContainerError, RequestError
from oubliette.project.git import GIT_ENV, Exec
from oubliette.store.codec import clean

MAX_BUNDLE_BYTES: Final = 30 << 20
"""What an exec may put out is 32 MiB (``oubliette_relay.protocol``)."""
MAX_LISTED: Final = 500

LOOK_SECONDS: Final = 60.0
BUNDLE_SECONDS: Final = 300.0
MERGE_SECONDS: Final = 300.0

_LINE_BYTES: Final = 1 << 20
_TEXT: Final = 4096
_CHANGES: Final = ("added", "modified", "deleted")
_KINDS: Final = ("content", "both_added", "deleted_in_fork", "deleted_in_parent", "uncommitted", "protected")


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a fork has to bring. ``data`` empty: nothing. ``uncommitted``: files that stay behind, ``left_behind`` all
    of them counted."""

    head: str
    commits: int
    data: bytes
    uncommitted: Sequence[str]
    left_behind: int


@dataclass(frozen=True, slots=True)
class Merged:
    """What became of it. ``conflicts``: [{path, kind}]; with any of them nothing was changed."""

    merged: bool
    base: str
    head: str
    commits: int
    files: Sequence[Json] = ()
    files_truncated: bool = False
    conflicts: Sequence[Json] = ()
    conflicts_truncated: bool = False


class Repository:
    """The git of one workspace, through a callable that runs commands in its container."""

    def __init__(self, run: Exec, directory: str, *, scratch: str = "/state") -> None:
        """``directory`` and ``scratch``, a directory for temporary files, are paths inside."""
        self._run = run
        self._directory = directory
        self._scratch = scratch

    async def known(self) -> Sequence[str]:
        """The newest commits. Raises RequestError conflict when it is no repository, ContainerError."""
        answer, _ = await self._ask("look", {}, "The parent's workspace", seconds=LOOK_SECONDS)
        return [one for one in _list(answer, "known") if isinstance(one, str) and len(one) <= 64 and one.isalnum()]

    async def bundle(self, known: Sequence[str], max_bytes: int = MAX_BUNDLE_BYTES) -> Bundle:
        """The commits of its HEAD that are not ``known``. Raises RequestError: conflict (no repository), too_large;
        ContainerError."""
        limit = min(max_bytes, MAX_BUNDLE_BYTES)
        answer, data = await self._ask(
            "bundle",
            {"known": list(known)},
            "The fork's workspace",
            seconds=BUNDLE_SECONDS,
            more=[str(limit)],
            max_output_bytes=limit + _LINE_BYTES,
        )
        return Bundle(
            head=_text(answer, "head"),
            commits=_count(answer, "commits"),
            data=data if answer.get("outcome") == "bundled" else b"",
            uncommitted=[_readable(one) for one in _list(answer, "uncommitted") if isinstance(one, str)],
            left_behind=_count(answer, "uncommitted_total"),
        )

    async def merge(self, data: bytes, *, ref: str, message: str, protected: Sequence[str] = ()) -> Merged:
        """Merge a bundle's HEAD into the checked-out branch. Index and work tree change only when nothing is in the
        way; ``ref`` keeps the commits when something is. ``protected`` are paths that nobody may write.

        Raises RequestError: conflict (no repository, no common history, git refuses), busy (its index is locked),
        ContainerError.
        """
        asked: Json = {"ref": ref, "message": message, "protected": [path.strip("/") for path in protected]}
        answer, _ = await self._ask("merge", asked, "The parent's workspace", seconds=MERGE_SECONDS, data=data)
        told = answer.get("conflicts")
        conflicts = [_conflict(one) for one in _list(answer, "conflicts") if isinstance(one, dict)]
        files = [_file(one) for one in _list(answer, "files") if isinstance(one, dict)]
        found = Merged(
            merged=answer.get("outcome") == "merged",
            base=_text(answer, "base"),
            head=_text(answer, "head"),
            commits=_count(answer, "commits"),
            conflicts=conflicts,
            conflicts_truncated=isinstance(told, list) and len(told) > MAX_LISTED,
        )
        if not found.merged:
            return found
        return replace(found, files=files, files_truncated=_count(answer, "files_total") > len(files))

    async def _ask(
        self,
        command: str,
        asked: Json,
        whose: str,
        *,
        seconds: float,
        more: Sequence[str] = (),
        data: bytes = b"",
        max_output_bytes: int = _LINE_BYTES,
    ) -> tuple[Mapping[str, Any], bytes]:
        """The answer's line and what follows it."""
        line = json.dumps({**asked, "scratch": self._scratch}).encode() + b"\n"
        result = await self._run(
            ["python3", "-I", "-c", _program(), command, self._directory, *more],
            env=GIT_ENV,
            cwd="/",
            stdin=line + data,
            timeout_seconds=seconds,
            max_output_bytes=max_output_bytes,
        )
        if result.timed_out:
            raise ContainerError(f"{command} commits: not done after {seconds:g} s")
        if result.exit_code != 0:
            said = result.stderr.decode("utf-8", "replace").strip()[-300:]
            raise ContainerError(f"{command} commits: the sandbox's python ended with {result.exit_code}: {said}")
        first, newline, rest = result.stdout.partition(b"\n")
        try:
            answer = json.loads(first) if newline and len(first) <= _LINE_BYTES else None
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise ContainerError(f"{command} commits: the sandbox's answer is no line of JSON")
        _refuse(answer, whose)
        return answer, rest


@cache
def _program() -> str:
    return Path(__file__).with_name("merge_inside.py").read_text()


def _refuse(answer: Mapping[str, Any], whose: str) -> None:
    said = "".join(char if char.isprintable() else " " for char in str(answer.get("said", ""))[:600])
    match answer.get("outcome"):
        case "not_git":
            raise RequestError(
                "conflict",
                f"{whose} is no git repository; only commits are merged.",
                hint="Make it one (git init, git commit), or hand files over in the results folder.",
            )
        case "unrelated":
            raise RequestError(
                "conflict",
                "The two workspaces have no common history, so their commits cannot be merged.",
                hint="Only a fork, or a clone of the same repository, can be merged; hand files over in the results "
                "folder instead.",
            )
        case "too_large":
            raise RequestError(
                "too_large",
                f"The fork's commits are larger than {MAX_BUNDLE_BYTES >> 20} MiB.",
                hint="Keep large files out of the commits; hand them over in the results folder.",
            )
        case "locked":
            raise RequestError(
                "busy",
                "Somebody is using git in the parent's workspace.",
                hint=f"Try again. git said: {said}",
                retryable=True,
            )
        case "moved":
            raise RequestError(
                "busy", "The parent's workspace got new commits meanwhile.", hint="Try again.", retryable=True
            )
        case "failed":
            raise RequestError("conflict", f"{whose}: git could not do it.", hint=f"git said: {said}")


def _list(answer: Mapping[str, Any], name: str) -> Sequence[Any]:
    value = answer.get(name)
    return value[: MAX_LISTED if name != "known" else None] if isinstance(value, list) else ()


def _text(answer: Mapping[str, Any], name: str) -> str:
    value = answer.get(name)
    return value[:64] if isinstance(value, str) and value.isalnum() else ""


def _count(answer: Mapping[str, Any], name: str) -> int:
    value = answer.get(name)
    return value if isinstance(value, int) and 0 <= value < 1 << 53 else 0


def _path(value: Mapping[str, Any]) -> str:
    return _readable(str(value.get("path", "")))


def _readable(path: str) -> str:
    """Without the surrogates that stand for bytes which are no UTF-8."""
    return clean(path[:_TEXT])


def _conflict(value: Mapping[str, Any]) -> Json:
    kind = value.get("kind")
    return {"path": _path(value), "kind": kind if kind in _KINDS else "other"}


def _file(value: Mapping[str, Any]) -> Json:
    change = value.get("change")
    found: Json = {"path": _path(value), "change": change if change in _CHANGES else "modified"}
    return found | {name: _count(value, name) for name in ("added", "removed") if name in value}
