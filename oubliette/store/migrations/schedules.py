"""Schedules, where they run, and one row for each of their occurrences."""

from __future__ import annotations

SCHEDULES = """
-- due_at: when there is something to do for it; NULL while it is disabled or paused.
CREATE TABLE schedules (
  schedule_id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  cron_expr TEXT NOT NULL,
  timezone TEXT NOT NULL,
  message TEXT NOT NULL,
  enabled INTEGER NOT NULL,
  overlap_behavior TEXT NOT NULL,
  session_behavior TEXT NOT NULL,
  misfire TEXT NOT NULL,
  jitter_seconds INTEGER NOT NULL,
  pause_after_failures INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  created_by TEXT NOT NULL,
  accounted_until INTEGER NOT NULL,
  authority TEXT,
  model TEXT,
  max_cost_microusd INTEGER,
  timeout_minutes REAL,
  paused TEXT,
  next_at INTEGER,
  due_at INTEGER,
  last_run_at INTEGER
) STRICT;
CREATE INDEX schedules_by_age ON schedules (created_at, schedule_id);
CREATE INDEX schedules_due ON schedules (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX schedules_by_authority ON schedules (authority) WHERE authority IS NOT NULL;

-- No foreign keys on places: a target goes in the unit that says what becomes of its schedule.
CREATE TABLE schedule_targets (
  target_id TEXT PRIMARY KEY,
  schedule_id TEXT NOT NULL REFERENCES schedules ON DELETE CASCADE,
  project_id TEXT NOT NULL,
  position INTEGER NOT NULL,
  workspace_id TEXT,
  session_id TEXT,
  consecutive_failures INTEGER NOT NULL
) STRICT;
CREATE INDEX schedule_targets_by_schedule ON schedule_targets (schedule_id, position);
CREATE INDEX schedule_targets_by_project ON schedule_targets (project_id);
CREATE INDEX schedule_targets_by_session ON schedule_targets (session_id) WHERE session_id IS NOT NULL;

-- Accounts: they outlive targets, places and sessions, and go only with their schedule (or by its history's limit).
CREATE TABLE runs (
  run_key INTEGER PRIMARY KEY,
  run_id TEXT NOT NULL UNIQUE,
  schedule_id TEXT NOT NULL REFERENCES schedules ON DELETE CASCADE,
  target_id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  "trigger" TEXT NOT NULL,
  planned_at INTEGER NOT NULL,
  claimed_at INTEGER NOT NULL,
  status TEXT NOT NULL,
  workspace_id TEXT,
  authority TEXT,
  reason TEXT,
  missed_count INTEGER NOT NULL,
  until INTEGER,
  held_since INTEGER,
  session_id TEXT,
  session TEXT,
  turn INTEGER,
  started_at INTEGER,
  ended_at INTEGER,
  output TEXT,
  output_bytes INTEGER,
  usage TEXT,
  error TEXT,
  UNIQUE (schedule_id, target_id, planned_at, "trigger")
) STRICT;
CREATE INDEX runs_by_schedule ON runs (schedule_id, claimed_at, run_id);
CREATE INDEX runs_by_target ON runs (target_id, claimed_at, run_id);
CREATE INDEX runs_by_session ON runs (session_id, turn) WHERE session_id IS NOT NULL;
CREATE INDEX runs_open ON runs (session_id, status) WHERE status IN ('claimed', 'queued', 'running');
"""
