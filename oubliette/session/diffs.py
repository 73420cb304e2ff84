"""What a session has changed: written down as each turn ends, so that asking for it only reads.

Snapshots and patches are made by git in the session's own sandbox, which runs anyway at that moment; their answers are
untrusted, bounded and parsed (``project.git``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import structlog
import trio

from oubliette.core.model import Json, SessionRow, TurnRow
from oubliette.errors import ContainerError
from oubliette.project.git import MAX_FILES, Patch, Snapshots
from oubliette.session import views
from oubliette.store import changes, turns
from oubliette.store.changes import ChangeRow
from oubliette.store.database import Store, Tx

log = structlog.get_logger(__name__)

KEPT_PATCH_BYTES = 256 << 10
"""Of each patch that is written down."""


async def of_turn(store: Store, snapshots: Snapshots, turn: TurnRow, before: str, after: str) -> list[ChangeRow]:
    """The turn's own change and, when earlier turns had one, that since the first of them. Raises ContainerError."""
    if before == after:
        return []
    spans = [(turn.turn, before)]
    first = await store.read(partial(turns.first_with_tree, session_id=turn.session_id))
    if first is not None and first.tree_before is not None and first.turn < turn.turn:
        spans.append((first.turn, first.tree_before))
    return [await _change(snapshots, turn, since, base, after) for since, base in spans]


async def _change(snapshots: Snapshots, turn: TurnRow, since: int, base: str, head: str) -> ChangeRow:
    listed = await snapshots.changes(base, head)
    try:
        patch = await snapshots.patch(base, head, KEPT_PATCH_BYTES)
    except ContainerError as error:
        log.warning("no patch of what a turn changed", session=turn.session_id, turn=turn.turn, error=str(error))
        patch = Patch("", 0, truncated=True)
    return ChangeRow(
        session_id=turn.session_id,
        since_turn=since,
        turn=turn.turn,
        base=base,
        head=head,
        files=list(listed.files),
        files_truncated=listed.truncated,
        patch=await trio.to_thread.run_sync(changes.pack, patch.text),
        patch_bytes=patch.size_bytes,
        patch_truncated=patch.truncated,
    )


def diff_result(tx: Tx, row: SessionRow, since_turn: int | None = None) -> Json:
    """SHAPES' result of diff: what the turns from ``since_turn`` on [the first] have changed, those that have ended.

    Several turns of which no common patch is known are shown as their patches one after another.
    """
    own = changes.of_turns(tx, row.session_id, since_turn or 1)
    span = _span(tx, row, own, since_turn or 1)
    shape: Json = {"session_id": row.session_id}
    if span:
        shape |= {"base": span[0].base, "head": span[-1].head}
    files = _files(span)
    shape["files"] = files[:MAX_FILES]
    if len(files) > MAX_FILES or any(one.files_truncated for one in span):
        shape["files_truncated"] = True
    patch, whole = _patch(tx, span)
    shape["patch"] = patch
    if not whole:
        shape |= {"patch_truncated": True, "patch_bytes": sum(one.patch_bytes for one in span)}
    if turns.running(tx, row.session_id) is not None:
        shape["next"] = (
            f"A turn is running; what it changes is here when it has ended: "
            f"session wait session_ids={views.quoted([row.session_id])}"
        )
    return shape


def _span(tx: Tx, row: SessionRow, own: Sequence[ChangeRow], since_turn: int) -> Sequence[ChangeRow]:
    if len(own) < 2:
        return own
    whole = changes.whole(tx, row.session_id)
    if whole is not None and whole.turn == own[-1].turn and since_turn <= whole.since_turn:
        return [whole]
    earlier = changes.of_turns(tx, row.session_id, 1)
    if whole is not None and whole.turn == own[-1].turn and earlier[0].turn == own[0].turn:
        return [whole]  # nothing was changed before that turn
    return own


def _patch(tx: Tx, span: Sequence[ChangeRow]) -> tuple[str, bool]:
    """As much of the patches as one diff shows, and whether that is all."""
    patch, whole = "", True
    for row in span:
        room = KEPT_PATCH_BYTES - len(patch)
        if room <= 0:
            return patch, False
        text = changes.text_of(tx, row)
        whole = whole and not row.patch_truncated and len(text) <= room
        patch += text[:room]
    return patch, whole


def _files(span: Iterable[ChangeRow]) -> list[Json]:
    """By path, as one change from the first state to the last."""
    merged: dict[str, Json] = {}
    for row in span:
        for file in row.files:
            known = merged.get(file["path"])
            if known is None:
                merged[file["path"]] = dict(file)
            elif known["change"] == "added" and file["change"] == "deleted":
                del merged[file["path"]]
            else:
                merged[file["path"]] = _joined(known, file)
    return [merged[path] for path in sorted(merged)]


def _joined(first: Json, second: Json) -> Json:
    change = second["change"]
    if first["change"] == "added":
        change = "added"
    elif first["change"] == "deleted":
        change = "modified"
    joined: Json = {"path": first["path"], "change": change}
    for name in ("added", "removed"):
        if name in first and name in second:
            joined[name] = first[name] + second[name]
    return joined
