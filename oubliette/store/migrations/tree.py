"""The second migration: what a tree of sessions needs beside its sessions' rows."""

from __future__ import annotations

TREE = """
-- Where a tree's count of money and tokens begins, and what holds it now. A tree without a row counts from its start.
CREATE TABLE tree_budgets (
  root_id TEXT PRIMARY KEY REFERENCES sessions (session_id) ON DELETE CASCADE,
  counts_from INTEGER NOT NULL,
  run_limit_microusd INTEGER,
  held TEXT,
  held_since INTEGER
) STRICT;

-- A model request that has been admitted and not settled, at its worst case. No foreign keys: see model_requests.
CREATE TABLE reservations (
  reservation_key INTEGER PRIMARY KEY,
  session_id TEXT NOT NULL,
  root_id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  turn INTEGER,
  ts INTEGER NOT NULL,
  alias TEXT NOT NULL,
  model TEXT NOT NULL,
  provider TEXT NOT NULL,
  input_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  cost_microusd INTEGER NOT NULL,
  read_microusd INTEGER NOT NULL,
  priced INTEGER NOT NULL
) STRICT;
CREATE INDEX reservations_by_root ON reservations (root_id);
CREATE INDEX reservations_by_project ON reservations (project_id);

-- The sums that every model request is weighed by are read from these alone.
DROP INDEX model_requests_by_root;
CREATE INDEX model_requests_by_root ON model_requests (
  root_id, request_key, cost_microusd, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens
);
DROP INDEX model_requests_by_project;
CREATE INDEX model_requests_by_project ON model_requests (project_id, ts, cost_microusd);

-- Who made a workspace (SHAPES' created_by): an agent may use those that its own tree made.
ALTER TABLE workspaces ADD COLUMN created_by TEXT;

-- What a turn's session has left for its parent, as it was when the turn ended: [{path, bytes}].
ALTER TABLE turns ADD COLUMN results TEXT NOT NULL DEFAULT '[]';

-- What turns changed in the work tree, kept so that a diff is only a read. since_turn = turn: that turn's own change;
-- the other row of a session, since its first turn, is the whole of it and is replaced by each turn.
CREATE TABLE changes (
  session_id TEXT NOT NULL REFERENCES sessions (session_id) ON DELETE CASCADE,
  since_turn INTEGER NOT NULL,
  turn INTEGER NOT NULL,
  base TEXT NOT NULL,
  head TEXT NOT NULL,
  files TEXT NOT NULL,
  files_truncated INTEGER NOT NULL,
  patch BLOB NOT NULL,
  patch_bytes INTEGER NOT NULL,
  patch_truncated INTEGER NOT NULL,
  PRIMARY KEY (session_id, turn, since_turn)
) STRICT;

CREATE TABLE merges (
  merge_id TEXT PRIMARY KEY,
  session_id TEXT NOT NULL REFERENCES sessions (session_id) ON DELETE CASCADE,
  turn INTEGER NOT NULL,
  state TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  created_by TEXT NOT NULL,
  ended_at INTEGER,
  told INTEGER NOT NULL,
  result TEXT,
  error TEXT
) STRICT;
CREATE INDEX merges_by_session ON merges (session_id, created_at);

-- What clients offer to the agents of their sessions. principal_id is a token's; no foreign key: a token that is gone
-- is noticed, with an event in the session.
CREATE TABLE caller_tools (
  session_id TEXT NOT NULL REFERENCES sessions (session_id) ON DELETE CASCADE,
  caller_id TEXT NOT NULL,
  principal_id TEXT NOT NULL,
  tools TEXT NOT NULL,
  declared_at INTEGER NOT NULL,
  PRIMARY KEY (session_id, caller_id)
) STRICT;
CREATE INDEX caller_tools_by_principal ON caller_tools (principal_id);
"""
