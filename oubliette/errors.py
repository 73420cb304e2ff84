"""Every error of ours. Third-party exceptions are translated into one of these, once, in the adapter that met them.

``RequestError`` is safe to show to a caller. Everything else is shown as its ``code`` with a plain sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class OublietteError(Exception):
    """An operation failed: ``str()`` names the operation and its subject, ``hint`` says what to do."""

    code = "internal"
    retryable = False

    def __init__(self, message: str, *, hint: str = "", code: str | None = None, retryable: bool | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable

    def as_json(self) -> dict[str, Any]:
        """SHAPES' error object (what is inside ``error``)."""
        shape: dict[str, Any] = {"code": self.code, "message": self.message, "retryable": self.retryable}
        if self.hint:
            shape["hint"] = self.hint
        return shape


@dataclass(frozen=True, slots=True)
class Limit:
    """The limit that refused something, with what it allows and what is used."""

    name: str
    limit: float
    used: float


class RequestError(OublietteError):
    """The caller asked for something that cannot be done: one clear sentence, nothing changed. Safe to show.

    ``code`` is one of SHAPES' error codes (core.model.ErrorCode); ``field`` names the offending argument.
    """

    code = "invalid_argument"

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str = "",
        field: str | None = None,
        retryable: bool = False,
        retry_after_ms: int | None = None,
        limit: Limit | None = None,
        candidates: list[str] | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint=hint, code=code, retryable=retryable)
        self.field = field
        self.retry_after_ms = retry_after_ms
        self.limit = limit
        self.candidates = candidates
        self.data = data

    def as_json(self) -> dict[str, Any]:
        shape = super().as_json()
        if self.field is not None:
            shape["field"] = self.field
        if self.retry_after_ms is not None:
            shape["retry_after_ms"] = self.retry_after_ms
        if self.limit is not None:
            shape["limit"] = {"name": self.limit.name, "limit": self.limit.limit, "used": self.limit.used}
        if self.candidates is not None:
            shape["candidates"] = self.candidates
        return shape


class ContainerError(OublietteError):
    """A container operation failed."""

    code = "unavailable"
    retryable = True


class RuntimeUnavailable(ContainerError):
    """The runtime itself cannot be used on this host."""


class EngineError(ContainerError):
    """The engine answered with an error."""


class ContainerExited(ContainerError):
    """The container ended when it was needed."""


class ImageMissing(ContainerError):
    """The image is not there and cannot be had."""


class AgentError(OublietteError):
    """The agent did not do what was asked."""

    code = "agent_error"


class AgentUnreachable(AgentError):
    """The agent process does not answer."""

    retryable = True


class AgentProtocolError(AgentError):
    """The agent answered something we do not understand."""


class WireError(OublietteError):
    """A protocol was violated."""


class LocalWireError(WireError):
    """By us: a bug."""


class RemoteWireError(WireError):
    """By the peer."""


class StoreError(OublietteError):
    """The database failed or is not ours to open."""


class ConfigError(OublietteError):
    """The configuration is wrong. ``path`` and ``line`` (from 1) point at it."""

    code = "invalid_argument"

    def __init__(self, message: str, *, path: str = "", line: int = 0, hint: str = "") -> None:
        where = f"{path}:{line}: " if path and line else f"{path}: " if path else ""
        super().__init__(where + message, hint=hint)
        self.path = path
        self.line = line
