"""The first migration: tokens, projects, workspaces, containers, sessions and all that hangs on them."""

from __future__ import annotations

HOUSE = """
CREATE TABLE meta (
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT;

CREATE TABLE tokens (
  token_id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  scope TEXT NOT NULL,
  kind TEXT NOT NULL,
  secret_hash BLOB NOT NULL UNIQUE,
  created_at INTEGER NOT NULL,
  created_by TEXT NOT NULL,
  last_used_at INTEGER,
  expires_at INTEGER,
  revoked_at INTEGER
) STRICT;
CREATE INDEX tokens_by_name ON tokens (name);
CREATE INDEX tokens_by_age ON tokens (created_at, token_id);

CREATE TABLE projects (
  project_id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  state TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  created_by TEXT NOT NULL,
  default_workspace_id TEXT NOT NULL,
  description TEXT,
  remote_url TEXT,
  branch TEXT,
  settings TEXT NOT NULL,
  error TEXT
) STRICT;
CREATE INDEX projects_by_age ON projects (created_at, project_id);

CREATE TABLE workspaces (
  workspace_id TEXT PRIMARY KEY,
  project_id TEXT NOT NULL REFERENCES projects ON DELETE CASCADE,
  "default" INTEGER NOT NULL,
  state TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  last_session_at INTEGER,
  external_id TEXT,
  source TEXT,
  forked_from TEXT,
  error TEXT
) STRICT;
CREATE INDEX workspaces_by_project ON workspaces (project_id, created_at, workspace_id);
CREATE UNIQUE INDEX workspaces_by_external_id ON workspaces (project_id, external_id) WHERE external_id IS NOT NULL;

CREATE TABLE containers (
  container_id TEXT PRIMARY KEY,
  project_id TEXT NOT NULL REFERENCES projects ON DELETE CASCADE,
  workspace_id TEXT REFERENCES workspaces ON DELETE CASCADE,
  runtime TEXT NOT NULL,
  generation INTEGER NOT NULL,
  capability TEXT NOT NULL,
  state TEXT NOT NULL,
  since INTEGER NOT NULL,
  image TEXT,
  spec TEXT NOT NULL,
  agent TEXT NOT NULL,
  error TEXT
) STRICT;
CREATE INDEX containers_by_place ON containers (project_id, workspace_id, generation);
CREATE INDEX containers_by_workspace ON containers (workspace_id);

-- A session outlives its workspace: its tree, its log and its parent may lie elsewhere.
CREATE TABLE sessions (
  session_key INTEGER PRIMARY KEY,
  session_id TEXT NOT NULL UNIQUE,
  project_id TEXT NOT NULL REFERENCES projects ON DELETE CASCADE,
  workspace_id TEXT NOT NULL,
  root_id TEXT NOT NULL REFERENCES sessions (session_id),
  depth INTEGER NOT NULL,
  title TEXT NOT NULL,
  created_by TEXT NOT NULL,
  status TEXT NOT NULL,
  since INTEGER NOT NULL,
  model TEXT NOT NULL,
  autonomy TEXT NOT NULL,
  reasoning TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  parent_id TEXT REFERENCES sessions (session_id),
  external_id TEXT,
  source TEXT,
  schedule_id TEXT,
  reason TEXT,
  ending TEXT,
  detached INTEGER NOT NULL,
  hibernated INTEGER NOT NULL,
  ended_at INTEGER,
  turn INTEGER NOT NULL,
  agent_session_id TEXT,
  settings TEXT NOT NULL,
  limits TEXT NOT NULL,
  error TEXT
) STRICT;
CREATE INDEX sessions_by_age ON sessions (created_at, session_id);
CREATE INDEX sessions_by_project ON sessions (project_id, created_at, session_id);
CREATE INDEX sessions_by_workspace ON sessions (workspace_id, created_at, session_id);
CREATE INDEX sessions_by_root ON sessions (root_id);
CREATE INDEX sessions_by_parent ON sessions (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX sessions_by_agent ON sessions (agent_session_id) WHERE agent_session_id IS NOT NULL;
CREATE UNIQUE INDEX sessions_by_external_id ON sessions (project_id, external_id) WHERE external_id IS NOT NULL;
CREATE INDEX sessions_open ON sessions (status) WHERE status NOT IN ('completed', 'failed', 'cancelled');

-- Apart from its session because it changes with every event, and a session's row may carry 64 KiB of system text.
-- last_seq is kept on roots only.
CREATE TABLE event_logs (
  session_key INTEGER PRIMARY KEY REFERENCES sessions ON DELETE CASCADE,
  root_key INTEGER NOT NULL,
  project_id TEXT NOT NULL,
  root_id TEXT NOT NULL,
  oldest_index INTEGER NOT NULL DEFAULT 0,
  last_index INTEGER NOT NULL DEFAULT -1,
  last_seq INTEGER NOT NULL DEFAULT -1,
  stored_bytes INTEGER NOT NULL DEFAULT 0
) STRICT;

-- body last: a reader that filters by type or turn never touches the pages of a long one.
CREATE TABLE events (
  event_key INTEGER PRIMARY KEY,
  session_key INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE,
  "index" INTEGER NOT NULL,
  root_key INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  ts INTEGER NOT NULL,
  type TEXT NOT NULL,
  turn INTEGER,
  source TEXT,
  body TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX events_by_index ON events (session_key, "index");
CREATE UNIQUE INDEX events_by_seq ON events (root_key, seq);
CREATE UNIQUE INDEX events_by_source ON events (session_key, source) WHERE source IS NOT NULL;

CREATE TABLE turns (
  turn_key INTEGER PRIMARY KEY,
  session_id TEXT NOT NULL REFERENCES sessions (session_id) ON DELETE CASCADE,
  turn INTEGER NOT NULL,
  status TEXT NOT NULL,
  sender TEXT NOT NULL,
  prompt TEXT NOT NULL,
  queued_at INTEGER NOT NULL,
  overrides TEXT NOT NULL,
  outcome TEXT,
  started_at INTEGER,
  ended_at INTEGER,
  first_index INTEGER,
  last_index INTEGER,
  final_text TEXT,
  files TEXT NOT NULL,
  error TEXT,
  agent_message_id TEXT,
  tree_before TEXT,
  tree_after TEXT,
  UNIQUE (session_id, turn)
) STRICT;
CREATE INDEX turns_unfinished ON turns (session_id, status, turn) WHERE status <> 'done';

CREATE TABLE attachments (
  session_id TEXT NOT NULL,
  turn INTEGER NOT NULL,
  position INTEGER NOT NULL,
  filename TEXT NOT NULL,
  content_type TEXT NOT NULL,
  data BLOB NOT NULL,
  PRIMARY KEY (session_id, turn, position),
  FOREIGN KEY (session_id, turn) REFERENCES turns (session_id, turn) ON DELETE CASCADE
) STRICT;

CREATE TABLE requests (
  request_id TEXT PRIMARY KEY,
  session_id TEXT NOT NULL REFERENCES sessions (session_id) ON DELETE CASCADE,
  turn INTEGER NOT NULL,
  kind TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  expires_at INTEGER NOT NULL,
  on_expiry TEXT NOT NULL,
  body TEXT NOT NULL,
  agent_ref TEXT NOT NULL,
  resolution TEXT
) STRICT;
CREATE INDEX requests_by_session ON requests (session_id, created_at);
CREATE INDEX requests_pending ON requests (expires_at) WHERE resolution IS NULL;

-- No foreign keys: what was spent outlives the session and the project that spent it.
CREATE TABLE model_requests (
  request_key INTEGER PRIMARY KEY,
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
  reasoning_tokens INTEGER NOT NULL,
  cache_read_tokens INTEGER NOT NULL,
  cache_write_tokens INTEGER NOT NULL,
  cost_microusd INTEGER NOT NULL,
  cost_complete INTEGER NOT NULL,
  error TEXT
) STRICT;
CREATE INDEX model_requests_by_session ON model_requests (session_id, turn);
CREATE INDEX model_requests_by_root ON model_requests (root_id);
CREATE INDEX model_requests_by_project ON model_requests (project_id, ts);

CREATE TABLE request_keys (
  principal_id TEXT NOT NULL,
  tool TEXT NOT NULL,
  action TEXT NOT NULL,
  key TEXT NOT NULL,
  args_hash TEXT NOT NULL,
  result TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  PRIMARY KEY (principal_id, tool, action, key)
) STRICT;
CREATE INDEX request_keys_by_age ON request_keys (created_at);

CREATE TABLE audit (
  audit_id INTEGER PRIMARY KEY,
  ts INTEGER NOT NULL,
  principal TEXT NOT NULL,
  action TEXT NOT NULL,
  target TEXT,
  outcome TEXT NOT NULL,
  request_id TEXT
) STRICT;
CREATE INDEX audit_by_age ON audit (ts, audit_id);

CREATE TABLE execs (
  exec_id TEXT PRIMARY KEY,
  project_id TEXT NOT NULL REFERENCES projects ON DELETE CASCADE,
  workspace_id TEXT REFERENCES workspaces ON DELETE CASCADE,
  container_id TEXT,
  command TEXT NOT NULL,
  state TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  created_by TEXT NOT NULL,
  working_dir TEXT,
  ended_at INTEGER,
  exit_code INTEGER,
  stdout TEXT NOT NULL,
  stdout_bytes INTEGER NOT NULL,
  stderr TEXT NOT NULL,
  stderr_bytes INTEGER NOT NULL,
  timed_out INTEGER NOT NULL,
  error TEXT
) STRICT;
CREATE INDEX execs_by_project ON execs (project_id, created_at);
CREATE INDEX execs_by_workspace ON execs (workspace_id);
"""
