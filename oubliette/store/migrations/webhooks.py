"""Notices on their way to the receivers of webhooks."""

from __future__ import annotations

WEBHOOKS = """
-- A row for each receiver in the configuration: while there is none, nothing that happens makes a notice.
-- types and projects: JSON lists, empty means all.
CREATE TABLE webhook_endpoints (
  name TEXT PRIMARY KEY,
  types TEXT NOT NULL,
  projects TEXT NOT NULL
) STRICT;

-- One notice for one receiver, written with what it tells of and deleted once it is taken. Not bound to its project:
-- a project's end is news as well.
CREATE TABLE webhook_notices (
  notice_key INTEGER PRIMARY KEY,
  notice_id TEXT NOT NULL UNIQUE,
  endpoint TEXT NOT NULL REFERENCES webhook_endpoints (name) ON DELETE CASCADE,
  type TEXT NOT NULL,
  project_id TEXT NOT NULL,
  at INTEGER NOT NULL,
  about TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  due_at INTEGER NOT NULL
) STRICT;
CREATE INDEX webhook_notices_due ON webhook_notices (endpoint, due_at, notice_key);
CREATE INDEX webhook_notices_by_age ON webhook_notices (endpoint, notice_key);
"""
