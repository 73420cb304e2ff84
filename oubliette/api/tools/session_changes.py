"""What sessions changed, and how a fork's commits get into its parent's workspace."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import Field

from oubliette.api.tools.fields import Args, Doc, Id, WaitSeconds, WriteArgs
from oubliette.api.tools.progress import patience, with_progress
from oubliette.api.tools.prose import fact, files_words, lines, untrusted
from oubliette.api.tools.registry import Call
from oubliette.core.limits import WORK_WAIT_SECONDS
from oubliette.core.model import Json
from oubliette.safe_text import safe_line
from oubliette.session import diffs


class Diff(Args):
    session_id: Annotated[Id, Doc("which session")]
    since_turn: Annotated[int | None, Field(ge=1), Doc("only from this turn on")] = None


class Merge(WriteArgs):
    session_id: Annotated[Id, Doc("which session")]
    wait_seconds: Annotated[WaitSeconds, Doc(f"[merge {WORK_WAIT_SECONDS}]")] = WORK_WAIT_SECONDS


async def diff(call: Call, args: Diff) -> Json:
    """From rows alone: nothing is started for it."""
    look = partial(diffs.diff_result, row=call.place.session, since_turn=args.since_turn)
    return await call.shared.services.store.read(look)


async def merge(call: Call, args: Merge) -> Json:
    merge_id = await call.shared.services.tree.merges.begin(call.principal, args.session_id)
    return {"session_id": args.session_id, "merge_id": merge_id}


async def wait_for_merge(call: Call, args: Merge, data: Json) -> Json:
    """It goes on when the call ends; its outcome is told to the next one."""
    merges = call.shared.services.tree.merges
    seconds = patience(call, args.wait_seconds)
    await with_progress(call, seconds, "merging", partial(merges.wait, data["merge_id"], seconds))
    return await merges.shown(data["merge_id"])


def diff_words(data: Json) -> str:
    cut = f" (cut, {data['patch_bytes']:,} bytes in all)" if data.get("patch_truncated") else ""
    changed = data.get("files") or ()
    return lines(
        f"Session: {data['session_id']}",
        fact("Base", data.get("base")),
        fact("Head", data.get("head")),
        fact("Files", files_words(changed)) or "Files: none",
        fact("Next", data.get("next")),
        untrusted(f"Patch{cut}:\n{data['patch']}" if data.get("patch") else None),
    )


def merge_words(data: Json) -> str:
    if data.get("state") == "running":
        opening = f"Merge running: {data['session_id']}"
    elif data.get("merged"):
        opening = f"Merged: {data['session_id']}"
    else:
        opening = f"Not merged: {data['session_id']}"
    conflicts = [f"{one.get('kind')}: {safe_line(str(one.get('path')), 200)}" for one in data.get("conflicts", ())]
    left = [safe_line(str(path), 200) for path in data.get("uncommitted", ())]
    return lines(
        opening,
        fact("Workspace", data.get("workspace_id")),
        fact("Commits", data.get("commits")),
        fact("Head", data.get("head")),
        fact("Files", files_words(data.get("files", ()))),
        fact("Next", data.get("next")),
        untrusted(
            "Conflicts:\n" + "\n".join(conflicts[:50]) if conflicts else None,
            "Not committed in the fork:\n" + "\n".join(left[:50]) if left else None,
        ),
    )
