"""Who calls: scopes, principals, tokens."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scope:
    """What a principal may reach. ``session_id`` is set for an agent's principal: its own subtree."""

    kind: Literal["admin", "project", "session"]
    read_only: bool = False
    project_id: str | None = None
    session_id: str | None = None
    container_id: str | None = None

    @property
    def is_admin(self) -> bool:
        return self.kind == "admin"

    def __str__(self) -> str:
        """As tokens spell it: ``admin``, ``admin:ro``, ``project:<uuid>``, ``project:<uuid>:ro``."""
        name = "admin" if self.kind == "admin" else f"{self.kind}:{self.project_id}"
        return name + ":ro" if self.read_only else name


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls. ``id`` is the token's, the session's, the schedule's, or ``local`` for the daemon itself.

    ``session``: an agent within its own subtree. ``agent``: the same session by its project's ``agent_scope``; ``id``
    is the session's then, and ``grant`` the token that lends the scope: what goes on by it ends with that token.
    """

    kind: Literal["token", "session", "agent", "schedule", "local"]
    id: str
    name: str
    scope: Scope
    grant: str | None = None

    def as_json(self) -> Json:
        """The shape used for ``created_by``, ``from`` and ``by``."""
        return {"kind": "session" if self.kind == "agent" else self.kind, "id": self.id, "name": self.name}


LOCAL = Principal("local", "local", "oubliette", Scope("admin"))


@dataclass(frozen=True, slots=True)
class TokenRow:
    token_id: str
    name: str
    scope: str
    kind: str
    created_at: datetime
    created_by: Json
    last_used_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


AGENT_GRANT = "agent_grant"
"""Where a project's settings (``{"id", "token_id"}``) and a container's spec (the id) hold the loan of agent_scope."""
