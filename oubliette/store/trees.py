"""A whole tree at once: so many queries, however many sessions it has."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile

from oubliette.core.model import OPEN_STATUSES, ModelUsage, Outcome, Reason, SessionStatus
from oubliette.store.codec import from_micros
from oubliette.store.database import Tx


@dataclass(frozen=True, slots=True)
class Branch:
    """Where a session is in its tree. ``key`` grows with each session made, for good."""

    key: int
    session_id: str
    parent_id: str | None
    depth: int
    status: SessionStatus
    workspace_id: str

    @property
    def open(self) -> bool:
        return self.status in OPEN_STATUSES


@dataclass(frozen=True, slots=True)
class Node:
    """How a session of a tree stands. ``outcome`` and ``last_ended_at`` are of its newest turn that has ended."""

    title: str
    reason: Reason | None
    turn: int
    model: str
    ended_at: datetime | None
    pending: int
    started_at: datetime | None
    outcome: Outcome | None
    last_ended_at: datetime | None


def branches(tx: Tx, root_id: str) -> list[Branch]:
    """Every session of the tree, depth first, siblings in order of creation."""
    found = [
        Branch(key, session_id, parent_id, depth, SessionStatus(status), workspace_id)
        for key, session_id, parent_id, depth, status, workspace_id in tx.rows(
            "SELECT session_key, session_id, parent_id, depth, status, workspace_id FROM sessions WHERE root_id = ?"
            " ORDER BY session_key DESC",
            root_id,
        )
    ]
    children: dict[str | None, list[Branch]] = {}
    for branch in found:
        children.setdefault(branch.parent_id, []).append(branch)
    ordered = []
    waiting = children.get(None, [])
    while waiting:
        branch = waiting.pop()
        ordered.append(branch)
        waiting += children.get(branch.session_id, ())
    return ordered


def below(tx: Tx, root_id: str, session_id: str) -> list[Branch]:
    """A session of the tree and all its descendants, depth first; empty when there is no such session."""
    found = branches(tx, root_id)
    if session_id == root_id:
        return found
    start = next((at for at, branch in enumerate(found) if branch.session_id == session_id), None)
    if start is None:
        return []
    top = found[start]
    return [top, *takewhile(lambda branch: branch.depth > top.depth, found[start + 1 :])]


def nodes(tx: Tx, session_ids: Collection[str]) -> Mapping[str, Node]:
    """By session id; an unknown one is left out."""
    rows = tx.rows(
        "SELECT s.session_id, s.title, s.reason, s.turn, s.model, s.ended_at,"
        " (SELECT count(*) FROM requests r WHERE r.session_id = s.session_id AND r.resolution IS NULL),"
        " (SELECT min(started_at) FROM turns WHERE turns.session_id = s.session_id),"
        " last.outcome, last.ended_at"
        " FROM sessions s LEFT JOIN turns last ON last.session_id = s.session_id AND last.turn ="
        " (SELECT max(turn) FROM turns WHERE turns.session_id = s.session_id AND turns.status = 'done')"
        " WHERE s.session_id IN (SELECT value FROM json_each(?))",
        json.dumps(sorted(session_ids)),
    )
    return {
        session_id: Node(
            title,
            Reason(reason) if reason is not None else None,
            turn,
            model,
            _moment(ended_at),
            pending,
            _moment(started_at),
            Outcome(outcome) if outcome is not None else None,
            _moment(last_ended_at),
        )
        for (
            session_id,
            title,
            reason,
            turn,
            model,
            ended_at,
            pending,
            started_at,
            outcome,
            last_ended_at,
        ) in rows
    }


def usage(tx: Tx, root_id: str) -> Mapping[str, ModelUsage]:
    """What each session of the tree has used, by its id; none that has used nothing."""
    rows = tx.rows(
        "SELECT session_id, count(*), sum(input_tokens), sum(output_tokens), sum(reasoning_tokens),"
        " sum(cache_read_tokens), sum(cache_write_tokens), sum(cost_microusd), min(cost_complete)"
        " FROM model_requests WHERE root_id = ? GROUP BY session_id",
        root_id,
    )
    return {row[0]: _used(*row[1:]) for row in rows}


def _used(
    requests: int, tokens_in: int, tokens_out: int, reasoning: int, read: int, written: int, cost: int, complete: int
) -> ModelUsage:
    return ModelUsage(requests, tokens_in, tokens_out, reasoning, read, written, cost, bool(complete))


def _moment(micros: int | None) -> datetime | None:
    return from_micros(micros) if micros is not None else None
