"""SHAPES.md in code, the rest: places (project, workspace, container), schedules, tokens. See ``shapes``."""

from __future__ import annotations

from typing import Any, Literal

from oubliette.core.shape import Shape
from oubliette.core.shapes import Actor, Counts, ErrorInfo, Object, Usage


class Progress(Shape):
    what: str | None = None
    done: int | None = None
    total: int | None = None
    unit: str | None = None
    text: str | None = None


class ContainerLimits(Shape):
    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None
    disk_bytes: int | None = None
    enforced: list[str] | None = None


class ContainerAgent(Shape):
    version: str | None = None
    state: str | None = None
    restarts: int | None = None


class ContainerRelay(Shape):
    version: str | None = None
    connected: bool | None = None


class Container(Shape):
    container_id: str | None = None
    project_id: str | None = None
    workspace_id: str | None = None
    runtime: str | None = None
    image: str | None = None
    state: str | None = None
    since: str | None = None
    progress: Progress | None = None
    agent: ContainerAgent | None = None
    relay: ContainerRelay | None = None
    network: str | None = None
    limits: ContainerLimits | None = None
    error: ErrorInfo | None = None


class ExecResultShape(Shape):
    exec_id: str
    state: str | None = None
    exit_code: int | None = None
    stdout: str | None = None
    stdout_truncated: Literal[True] | None = None
    stdout_bytes: int | None = None
    stderr: str | None = None
    stderr_truncated: Literal[True] | None = None
    stderr_bytes: int | None = None
    timed_out: bool | None = None
    duration_ms: int | None = None
    error: ErrorInfo | None = None


class GitState(Shape):
    branch: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    ahead: int | None = None


class Workspace(Shape):
    workspace_id: str
    project_id: str | None = None
    default: bool | None = None
    state: str | None = None
    path: str | None = None
    created_at: str | None = None
    last_session_at: str | None = None
    external_id: str | None = None
    source: str | None = None
    forked_from: str | None = None
    git: GitState | None = None
    open_sessions: int | None = None
    size_bytes: int | None = None
    container: Container | None = None
    error: ErrorInfo | None = None


class ProjectCredentials(Shape):
    provider: str | None = None
    github: str | None = None
    github_token_set: bool | None = None


class Project(Shape):
    project_id: str
    name: str | None = None
    description: str | None = None
    state: str | None = None
    error: ErrorInfo | None = None
    created_at: str | None = None
    updated_at: str | None = None
    created_by: Actor | None = None
    remote_url: str | None = None
    branch: str | None = None
    default_workspace_id: str | None = None
    path: str | None = None
    model: str | None = None
    allowed_models: list[str] | None = None
    autonomy: str | None = None
    reasoning: str | None = None
    container_type: str | None = None
    image: str | None = None
    custom_dockerfile: bool | None = None
    network: str | None = None
    runtime: str | None = None
    workspace_isolation: bool | None = None
    protected_paths: list[str] | None = None
    disabled_tools: list[str] | None = None
    permissions: Object | None = None
    mcp_servers: dict[str, Any] | None = None
    credentials: ProjectCredentials | None = None
    agent_scope: str | None = None
    limits: Object | None = None
    usage: Usage | None = None
    usage_today: Usage | None = None
    counts: Counts | None = None
    containers: list[Container] | None = None


class Run(Shape):
    run_id: str
    schedule_id: str | None = None
    target_id: str | None = None
    project_id: str | None = None
    workspace_id: str | None = None
    trigger: str | None = None
    planned_at: str | None = None
    claimed_at: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    status: str | None = None
    reason: str | None = None
    missed_count: int | None = None
    until: str | None = None
    session_id: str | None = None
    session: str | None = None
    turn: int | None = None
    output: str | None = None
    output_truncated: Literal[True] | None = None
    output_bytes: int | None = None
    usage: Usage | None = None
    error: ErrorInfo | None = None


class ScheduleTarget(Shape):
    target_id: str
    project_id: str | None = None
    workspace_id: str | None = None
    session_id: str | None = None
    last_run: Run | None = None


class SchedulePause(Shape):
    reason: str | None = None
    since: str | None = None
    text: str | None = None


class ScheduleNotice(Shape):
    """What will pause the schedule unless somebody does something: ``token_expires``."""

    reason: str | None = None
    at: str | None = None
    text: str | None = None


class Schedule(Shape):
    schedule_id: str
    name: str | None = None
    cron_expr: str | None = None
    cron_text: str | None = None
    timezone: str | None = None
    message: str | None = None
    message_truncated: Literal[True] | None = None
    message_bytes: int | None = None
    enabled: bool | None = None
    paused: SchedulePause | None = None
    overlap_behavior: str | None = None
    session_behavior: str | None = None
    misfire: str | None = None
    jitter_seconds: float | None = None
    model: str | None = None
    max_cost_usd: float | None = None
    timeout_minutes: float | None = None
    pause_after_failures: int | None = None
    created_at: str | None = None
    updated_at: str | None = None
    created_by: Actor | None = None
    last_run_at: str | None = None
    next_run_at: str | None = None
    next_runs: list[str] | None = None
    consecutive_failures: int | None = None
    notice: ScheduleNotice | None = None
    targets: list[ScheduleTarget] | None = None


class Token(Shape):
    token_id: str
    name: str | None = None
    scope: str | None = None
    kind: str | None = None
    created_at: str | None = None
    created_by: Actor | None = None
    last_used_at: str | None = None
    expires_at: str | None = None
    revoked_at: str | None = None
    secret: str | None = None


class ProjectList(Shape):
    projects: list[Project] | None = None
    next_cursor: str | None = None


class WorkspaceList(Shape):
    workspaces: list[Workspace] | None = None
    next_cursor: str | None = None


class TokenList(Shape):
    tokens: list[Token] | None = None
    next_cursor: str | None = None


class ScheduleList(Shape):
    schedules: list[Schedule] | None = None
    next_cursor: str | None = None


class RunList(Shape):
    runs: list[Run] | None = None
    next_cursor: str | None = None


class TriggerResult(Shape):
    schedule_id: str
    run_ids: list[str] | None = None
    runs: list[Run] | None = None
    deduplicated: bool | None = None


class SchedulePreview(Shape):
    cron_expr: str
    cron_text: str | None = None
    timezone: str | None = None
    next_runs: list[str] | None = None
    next_runs_local: list[str] | None = None
