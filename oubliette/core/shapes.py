"""SHAPES.md in code: one model per thing that clients see, the source of output schemas and docs.

Everything but ids is optional; absent means unknown or not applicable, and ``null`` is never sent. Enums are plain
strings here, because clients must live with new members.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from oubliette.core.shape import Shape

Object = dict[str, Any]


class LimitInfo(Shape):
    name: str | None = None
    limit: float | None = None
    used: float | None = None
    remaining: float | None = None
    reserved: float | None = None


class ErrorInfo(Shape):
    code: str | None = None
    message: str | None = None
    hint: str | None = None
    retryable: bool | None = None
    retry_after_ms: int | None = None
    field: str | None = None
    limit: LimitInfo | None = None
    candidates: list[str] | None = None
    request_id: str | None = None


class Usage(Shape):
    requests: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    cost_usd: float | None = None
    cost_complete: bool | None = None


class Actor(Shape):
    """``created_by``, ``from``, ``by``."""

    kind: str | None = None
    id: str | None = None
    name: str | None = None


class FileChange(Shape):
    path: str
    change: str | None = None
    added: int | None = None
    removed: int | None = None


class ResultFile(Shape):
    """One file of a session's results folder."""

    path: str
    bytes: int | None = None


class Tool(Shape):
    id: str | None = None
    name: str | None = None
    title: str | None = None
    status: str | None = None
    input: Object | None = None
    input_truncated: Literal[True] | None = None
    input_bytes: int | None = None
    output: str | None = None
    output_truncated: Literal[True] | None = None
    output_bytes: int | None = None
    duration_ms: int | None = None


class StatusChange(Shape):
    from_: str | None = Field(default=None, alias="from")
    to: str | None = None
    reason: str | None = None


class Child(Shape):
    session_id: str
    title: str | None = None
    outcome: str | None = None


class Permission(Shape):
    action: str | None = None
    patterns: list[str] | None = None
    tool_id: str | None = None
    text: str | None = None
    options: list[str] | None = None


class QuestionOption(Shape):
    id: str
    label: str | None = None
    description: str | None = None


class Question(Shape):
    id: str
    text: str | None = None
    options: list[QuestionOption] | None = None
    multiple: bool | None = None
    free_text: bool | None = None


class CallerToolCall(Shape):
    caller_id: str | None = None
    name: str | None = None
    arguments: Object | None = None


class Request(Shape):
    request_id: str
    kind: str | None = None
    session_id: str | None = None
    turn: int | None = None
    created_at: str | None = None
    expires_at: str | None = None
    on_expiry: str | None = None
    permission: Permission | None = None
    questions: list[Question] | None = None
    caller_tool: CallerToolCall | None = None


class Resolution(Shape):
    request_id: str
    accepted: bool | None = None
    resolved_at: str | None = None
    by: Actor | None = None
    how: str | None = None
    reply: str | None = None
    message: str | None = None
    answers: dict[str, list[str]] | None = None


class Event(Shape):
    session_id: str
    index: int
    seq: int | None = None
    ts: str | None = None
    turn: int | None = None
    type: str | None = None
    part: str | None = None
    role: str | None = None
    text: str | None = None
    text_truncated: Literal[True] | None = None
    text_bytes: int | None = None
    tool: Tool | None = None
    status: StatusChange | None = None
    code: str | None = None
    data: Object | None = None
    request: Request | None = None
    resolution: Resolution | None = None
    child: Child | None = None
    files: list[FileChange] | None = None
    files_truncated: Literal[True] | None = None
    usage: Usage | None = None
    outcome: str | None = None
    error: ErrorInfo | None = None


class Delta(Shape):
    type: str = "delta"
    session_id: str
    turn: int | None = None
    part: str | None = None
    kind: str | None = None
    offset: int | None = None
    text: str | None = None


class Turn(Shape):
    turn: int
    status: str | None = None
    outcome: str | None = None
    from_: Actor | None = Field(default=None, alias="from")
    prompt: str | None = None
    prompt_truncated: Literal[True] | None = None
    prompt_bytes: int | None = None
    queued_at: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    first_index: int | None = None
    last_index: int | None = None
    final_text: str | None = None
    final_text_truncated: Literal[True] | None = None
    final_text_bytes: int | None = None
    files: list[FileChange] | None = None
    files_truncated: Literal[True] | None = None
    results: list[ResultFile] | None = None
    usage: Usage | None = None
    error: ErrorInfo | None = None


class Counts(Shape):
    """Each where it applies: of children, of a tree, of a project."""

    total: int | None = None
    open: int | None = None
    starting: int | None = None
    running: int | None = None
    waiting: int | None = None
    paused: int | None = None
    idle: int | None = None
    failed: int | None = None
    workspaces: int | None = None
    sessions: int | None = None
    schedules: int | None = None


class Session(Shape):
    session_id: str
    project_id: str | None = None
    workspace_id: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    depth: int | None = None
    title: str | None = None
    external_id: str | None = None
    source: str | None = None
    schedule_id: str | None = None
    created_by: Actor | None = None
    status: str | None = None
    reason: str | None = None
    since: str | None = None
    open: bool | None = None
    hibernated: bool | None = None
    model: str | None = None
    autonomy: str | None = None
    reasoning: str | None = None
    created_at: str | None = None
    updated_at: str | None = None
    ended_at: str | None = None
    turn: int | None = None
    queued: int | None = None
    last_turn: Turn | None = None
    pending: list[Request] | None = None
    children: Counts | None = None
    last_index: int | None = None
    oldest_index: int | None = None
    last_seq: int | None = None
    usage: Usage | None = None
    tree_usage: Usage | None = None
    limits: Object | None = None
    turns: list[Turn] | None = None
    turns_cursor: str | None = None
    error: ErrorInfo | None = None


class SpawnResult(Shape):
    """Of ``spawn`` and ``message``."""

    session_id: str
    project_id: str | None = None
    workspace_id: str | None = None
    created: bool | None = None
    resumed: bool | None = None
    workspace_created: bool | None = None
    deduplicated: bool | None = None
    status: str | None = None
    turn: int | None = None
    queue_position: int | None = None
    last_index: int | None = None
    last_event_index: int | None = None
    last_turn: Turn | None = None
    next: str | None = None


class EventsResult(Shape):
    session_id: str
    status: str | None = None
    turn: int | None = None
    events: list[Event] | None = None
    last_index: int | None = None
    cursor: str | None = None
    more: bool | None = None
    oldest_index: int | None = None
    dropped_events: int | None = None
    completed: bool | None = None
    failed: bool | None = None
    error: ErrorInfo | None = None
    next: str | None = None


class WaitSession(Shape):
    session_id: str
    status: str | None = None
    reason: str | None = None
    turn: int | None = None
    outcome: str | None = None
    final_text: str | None = None
    final_text_truncated: Literal[True] | None = None
    final_text_bytes: int | None = None
    files: list[FileChange] | None = None
    files_truncated: Literal[True] | None = None
    results: list[ResultFile] | None = None
    pending: list[Request] | None = None
    usage: Usage | None = None
    last_index: int | None = None
    error: ErrorInfo | None = None


class WaitResult(Shape):
    done: bool | None = None
    timed_out: bool | None = None
    sessions: list[WaitSession] | None = None
    remaining: list[str] | None = None
    next: str | None = None


class SessionList(Shape):
    sessions: list[Session] | None = None
    next_cursor: str | None = None


class DiffResult(Shape):
    session_id: str
    base: str | None = None
    head: str | None = None
    files: list[FileChange] | None = None
    files_truncated: Literal[True] | None = None
    patch: str | None = None
    patch_truncated: Literal[True] | None = None
    patch_bytes: int | None = None
    next: str | None = None


class MergeConflict(Shape):
    """``kind``: content, both_added, deleted_in_fork, deleted_in_parent, uncommitted, protected, other."""

    path: str
    kind: str | None = None


class MergeResult(Shape):
    session_id: str
    merge_id: str | None = None
    state: str | None = None
    workspace_id: str | None = None
    merged: bool | None = None
    commits: int | None = None
    base: str | None = None
    head: str | None = None
    files: list[FileChange] | None = None
    files_truncated: Literal[True] | None = None
    conflicts: list[MergeConflict] | None = None
    conflicts_truncated: Literal[True] | None = None
    uncommitted: list[str] | None = None
    uncommitted_truncated: Literal[True] | None = None
    error: ErrorInfo | None = None
    next: str | None = None


class TreeNode(Shape):
    session_id: str
    parent_id: str | None = None
    depth: int | None = None
    title: str | None = None
    status: str | None = None
    reason: str | None = None
    turn: int | None = None
    outcome: str | None = None
    workspace_id: str | None = None
    model: str | None = None
    pending: int | None = None
    started_at: str | None = None
    ended_at: str | None = None
    usage: Usage | None = None


class TreeLimits(Shape):
    """Also the whole result of ``config_limits``."""

    root_id: str | None = None
    project_id: str | None = None
    depth: LimitInfo | None = None
    agents: LimitInfo | None = None
    active: LimitInfo | None = None
    tokens: LimitInfo | None = None
    cost_usd: LimitInfo | None = None
    cost_usd_today: LimitInfo | None = None


class Tree(Shape):
    root_id: str
    project_id: str | None = None
    seq: int | None = None
    counts: Counts | None = None
    usage: Usage | None = None
    limits: TreeLimits | None = None
    nodes: list[TreeNode] | None = None
    next_cursor: str | None = None
