"""Rows for the store's tests: a project with its default workspace, and sessions in it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from oubliette.core.model import (
    Autonomy,
    EventType,
    ModelUsage,
    NewEvent,
    PlaceState,
    ProjectRow,
    Reasoning,
    SessionRow,
    SessionStatus,
    TurnRow,
    TurnStatus,
    WorkspaceRow,
)
from oubliette.store import model_requests, projects, sessions, workspaces
from oubliette.store.database import Tx

AT = datetime(2026, 11, 22, 8, 15, 30, 123456, tzinfo=UTC)
BY = {"kind": "token", "id": "tok_1", "name": "laptop"}
PROJECT = "7b1c0000-0000-4000-8000-000000000001"
WORKSPACE = "91aa0000-0000-4000-8000-000000000001"


def project(project_id: str = PROJECT, **more: Any) -> ProjectRow:
    fields: dict[str, Any] = {
        "project_id": project_id,
        "name": "shop",
        "state": PlaceState.READY,
        "created_at": AT,
        "updated_at": AT,
        "created_by": BY,
        "default_workspace_id": WORKSPACE,
    }
    return ProjectRow(**{**fields, **more})


def workspace(workspace_id: str = WORKSPACE, **more: Any) -> WorkspaceRow:
    fields: dict[str, Any] = {
        "workspace_id": workspace_id,
        "project_id": PROJECT,
        "default": workspace_id == WORKSPACE,
        "state": PlaceState.READY,
        "created_at": AT,
    }
    return WorkspaceRow(**{**fields, **more})


def session(session_id: str = "gogol_1", **more: Any) -> SessionRow:
    fields: dict[str, Any] = {
        "session_id": session_id,
        "project_id": PROJECT,
        "workspace_id": WORKSPACE,
        "root_id": session_id,
        "depth": 0,
        "title": "a title",
        "created_by": BY,
        "status": SessionStatus.IDLE,
        "since": AT,
        "model": "opus",
        "autonomy": Autonomy.OFF,
        "reasoning": Reasoning.MEDIUM,
        "created_at": AT,
        "updated_at": AT,
    }
    return SessionRow(**{**fields, **more})


def turn(session_id: str = "gogol_1", number: int = 1, **more: Any) -> TurnRow:
    fields: dict[str, Any] = {
        "session_id": session_id,
        "turn": number,
        "status": TurnStatus.QUEUED,
        "sender": BY,
        "prompt": "do it",
        "queued_at": AT,
    }
    return TurnRow(**{**fields, **more})


def message(text: str = "hello", **more: Any) -> NewEvent:
    fields: dict[str, Any] = {"type": EventType.MESSAGE, "turn": 1, "body": {"part": "p", "text": text}, "ts": AT}
    return NewEvent(**{**fields, **more})


def place(tx: Tx) -> None:
    """A project and its default workspace."""
    projects.insert(tx, project())
    workspaces.insert(tx, workspace())


def place_with_session(tx: Tx) -> None:
    place(tx)
    sessions.insert(tx, session())


def spend(tx: Tx, session_id: str, turn_number: int | None, microusd: int, minutes: int = 0, **more: object) -> None:
    usage = ModelUsage(1, 100, 10, 1, 50, 5, microusd)
    model_requests.insert(
        tx,
        session_id=session_id,
        root_id="a",
        project_id=PROJECT,
        turn=turn_number,
        ts=AT + timedelta(minutes=minutes),
        alias="opus",
        model="claude",
        provider="anthropic",
        usage=replace(usage, **more),  # type: ignore[arg-type]
    )
