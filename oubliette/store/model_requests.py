"""One row for each model request that the gateway served: the only meter."""

from __future__ import annotations

from datetime import datetime

from oubliette.core.model import ModelUsage
from oubliette.store.codec import to_micros
from oubliette.store.database import Tx

_SUM = (
    "SELECT count(*), coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0),"
    " coalesce(sum(reasoning_tokens), 0), coalesce(sum(cache_read_tokens), 0), coalesce(sum(cache_write_tokens), 0),"
    " coalesce(sum(cost_microusd), 0), coalesce(min(cost_complete), 1) FROM model_requests "
)


def insert(
    tx: Tx,
    *,
    session_id: str,
    root_id: str,
    project_id: str,
    turn: int | None,
    ts: datetime,
    alias: str,
    model: str,
    provider: str,
    usage: ModelUsage,
    error: str | None = None,
) -> None:
    """``usage`` is of this one request; its ``requests`` is not looked at, a row counts as one."""
    tx.run(
        "INSERT INTO model_requests (session_id, root_id, project_id, turn, ts, alias, model, provider, input_tokens,"
        " output_tokens, reasoning_tokens, cache_read_tokens, cache_write_tokens, cost_microusd, cost_complete, error)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        session_id,
        root_id,
        project_id,
        turn,
        to_micros(ts),
        alias,
        model,
        provider,
        usage.input_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        usage.cost_microusd,
        int(usage.cost_complete),
        error,
    )


def session_usage(tx: Tx, session_id: str) -> ModelUsage:
    return _sum(tx, "WHERE session_id = ?", session_id)


def turn_usage(tx: Tx, session_id: str, turn: int) -> ModelUsage:
    return _sum(tx, "WHERE session_id = ? AND turn = ?", session_id, turn)


def tree_usage(tx: Tx, root_id: str) -> ModelUsage:
    return _sum(tx, "WHERE root_id = ?", root_id)


def run_usage(tx: Tx, project_id: str, root_id: str, since: datetime) -> ModelUsage:
    """Of a tree since then: found among what its project has asked since, because the tree may be years old."""
    found = "WHERE project_id = ? AND ts >= ? AND +root_id = ?"
    return _sum(tx, found, project_id, to_micros(since), root_id)


def project_usage(tx: Tx, project_id: str, since: datetime | None = None) -> ModelUsage:
    if since is None:
        return _sum(tx, "WHERE project_id = ?", project_id)
    return _sum(tx, "WHERE project_id = ? AND ts >= ?", project_id, to_micros(since))


def tree_spent(tx: Tx, root_id: str, counts_from: int) -> tuple[int, int]:
    """Micro-USD and tokens (read and written) of a tree's requests after that key."""
    cost, tokens = tx.rows(
        "SELECT coalesce(sum(cost_microusd), 0), coalesce(sum(input_tokens + output_tokens + cache_read_tokens"
        " + cache_write_tokens), 0) FROM model_requests WHERE root_id = ? AND request_key > ?",
        root_id,
        counts_from,
    )[0]
    return cost, tokens


def project_spent(tx: Tx, project_id: str, since: datetime) -> int:
    """Micro-USD of all its requests that were settled since."""
    found = tx.rows(
        "SELECT coalesce(sum(cost_microusd), 0) FROM model_requests WHERE project_id = ? AND ts >= ?",
        project_id,
        to_micros(since),
    )
    return int(found[0][0])


def _sum(tx: Tx, where: str, *args: str | int) -> ModelUsage:
    requests, tokens_in, tokens_out, reasoning, cache_read, cache_write, cost, complete = tx.rows(_SUM + where, *args)[
        0
    ]
    return ModelUsage(requests, tokens_in, tokens_out, reasoning, cache_read, cache_write, cost, bool(complete))
