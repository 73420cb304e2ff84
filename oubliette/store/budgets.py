"""What a tree may still spend: where its count begins, what is set aside, what holds it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from oubliette.core.model import Json, ModelUsage
from oubliette.store import model_requests
from oubliette.store.codec import from_micros, to_json, to_micros
from oubliette.store.database import Tx


@dataclass(frozen=True, slots=True)
class TreeBudget:
    """``counts_from``: the key of the last model request that no longer counts. ``run_limit_microusd``: the limit of
    the run that the count began with. ``held``: the limit that the tree is held by, as its event said it."""

    counts_from: int = 0
    run_limit_microusd: int | None = None
    held: Json | None = None
    held_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Reservation:
    """A model request at work, at its worst case; ``read_microusd`` is what reading it costs, ``priced`` whether that
    is known."""

    session_id: str
    root_id: str
    project_id: str
    turn: int | None
    at: datetime
    alias: str
    model: str
    provider: str
    input_tokens: int
    output_tokens: int
    cost_microusd: int
    read_microusd: int
    priced: bool


def get(tx: Tx, root_id: str) -> TreeBudget:
    """As it stands; the plain one for a tree that was never touched."""
    row = tx.one("SELECT * FROM tree_budgets WHERE root_id = ?", root_id)
    if row is None:
        return TreeBudget()
    return TreeBudget(
        row["counts_from"],
        row["run_limit_microusd"],
        None if row["held"] is None else json.loads(row["held"]),
        None if row["held_since"] is None else from_micros(row["held_since"]),
    )


def count_anew(tx: Tx, root_id: str, limit_microusd: int | None) -> None:
    """What was spent until now counts no longer; ``limit_microusd`` (None: the tree's own) holds for what follows."""
    newest = tx.rows("SELECT coalesce(max(request_key), 0) FROM model_requests")[0][0]
    tx.run(
        "INSERT INTO tree_budgets (root_id, counts_from, run_limit_microusd) VALUES (?, ?, ?) ON CONFLICT (root_id)"
        " DO UPDATE SET counts_from = excluded.counts_from, run_limit_microusd = excluded.run_limit_microusd",
        root_id,
        newest,
        limit_microusd,
    )


def set_run_limit(tx: Tx, root_id: str, limit_microusd: int | None) -> None:
    """Another limit for the count that goes on."""
    tx.run("UPDATE tree_budgets SET run_limit_microusd = ? WHERE root_id = ?", limit_microusd, root_id)


def hold(tx: Tx, root_id: str, held: Json, at: datetime) -> None:
    """The tree is held by that limit, since ``at`` unless it was held already."""
    tx.run(
        "INSERT INTO tree_budgets (root_id, counts_from, held, held_since) VALUES (?, 0, ?, ?) ON CONFLICT (root_id)"
        " DO UPDATE SET held = excluded.held, held_since = coalesce(held_since, excluded.held_since)",
        root_id,
        to_json(held),
        to_micros(at),
    )


def release(tx: Tx, root_id: str) -> bool:
    """Nothing holds the tree any more. False: nothing did."""
    return (
        tx.run("UPDATE tree_budgets SET held = NULL, held_since = NULL WHERE root_id = ? AND held IS NOT NULL", root_id)
        == 1
    )


def held_trees(tx: Tx) -> list[tuple[str, datetime]]:
    """Roots of the trees that are held, and since when."""
    rows = tx.rows("SELECT root_id, held_since FROM tree_budgets WHERE held IS NOT NULL ORDER BY root_id")
    return [(root_id, from_micros(since)) for root_id, since in rows]


def reserve(tx: Tx, row: Reservation) -> int:
    """Set the worst case of a request aside; the key to settle it with."""
    found = tx.rows(
        "INSERT INTO reservations (session_id, root_id, project_id, turn, ts, alias, model, provider, input_tokens,"
        " output_tokens, cost_microusd, read_microusd, priced) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " RETURNING reservation_key",
        row.session_id,
        row.root_id,
        row.project_id,
        row.turn,
        to_micros(row.at),
        row.alias,
        row.model,
        row.provider,
        row.input_tokens,
        row.output_tokens,
        row.cost_microusd,
        row.read_microusd,
        int(row.priced),
    )
    return int(found[0][0])


def unreserve(tx: Tx, key: int) -> bool:
    """The request is settled. False: it was before."""
    return tx.run("DELETE FROM reservations WHERE reservation_key = ?", key) == 1


def tree_reserved(tx: Tx, root_id: str) -> tuple[int, int]:
    """Micro-USD and tokens set aside for a tree's requests at work."""
    cost, tokens = tx.rows(
        "SELECT coalesce(sum(cost_microusd), 0), coalesce(sum(input_tokens + output_tokens), 0)"
        " FROM reservations WHERE root_id = ?",
        root_id,
    )[0]
    return cost, tokens


def project_reserved(tx: Tx, project_id: str) -> int:
    """Micro-USD set aside for all requests of a project."""
    found = tx.rows("SELECT coalesce(sum(cost_microusd), 0) FROM reservations WHERE project_id = ?", project_id)
    return int(found[0][0])


def settle_left_over(tx: Tx, at: datetime) -> int:
    """Requests that were at work when a daemon died: the provider has read them at least, and that is what they cost
    from now on. Returns how many."""
    left = tx.all("SELECT * FROM reservations ORDER BY reservation_key")
    for row in left:
        model_requests.insert(
            tx,
            session_id=row["session_id"],
            root_id=row["root_id"],
            project_id=row["project_id"],
            turn=row["turn"],
            ts=at,
            alias=row["alias"],
            model=row["model"],
            provider=row["provider"],
            usage=ModelUsage(
                requests=1,
                input_tokens=row["input_tokens"],
                cost_microusd=row["read_microusd"],
                cost_complete=False,
            ),
            error="the daemon ended while it was at work",
        )
    tx.run("DELETE FROM reservations")
    return len(left)
