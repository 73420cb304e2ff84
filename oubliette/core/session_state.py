"""The one table of a session's status: what may happen in each, and what it becomes."""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType

from oubliette.core.model import OPEN_STATUSES, SessionStatus
from oubliette.errors import OublietteError


class SessionEvent(StrEnum):
    """What happens to a session, as far as its status is concerned."""

    MESSAGED = "messaged"
    """A message was accepted: queued, or about to start. Opens a session that had ended."""
    STARTING = "starting"
    """Its agent is being brought up (again): first start, wake, recovery after a loss."""
    TURN_STARTED = "turn_started"
    """The agent has a turn; also the next queued one right after another."""
    ASKED = "asked"
    """The agent waits for a permission, an answer or a caller's tool."""
    ANSWERED = "answered"
    """The last pending ask was settled."""
    HELD = "held"
    """The turn stands still until somebody raises a limit or decides."""
    RELEASED = "released"
    """What held it is gone."""
    SETTLED = "settled"
    """The turn is over (or could not be started) and none is queued."""
    COMPLETED = "completed"
    """Ended on request: ``end``, or its parent completed."""
    CANCELLED = "cancelled"
    """Ended by ``cancel``, its own or an ancestor's."""
    BROKE = "broke"
    """It cannot go on."""


_S = SessionStatus
_E = SessionEvent
_AT_WORK = (_S.RUNNING, _S.WAITING, _S.PAUSED)
_ENDED = (_S.COMPLETED, _S.FAILED, _S.CANCELLED)

_TABLE: dict[tuple[SessionStatus, SessionEvent], SessionStatus] = {
    # A message: a session at work keeps its status and queues; an idle or ended one gets going.
    (_S.STARTING, _E.MESSAGED): _S.STARTING,
    **{(status, _E.MESSAGED): status for status in _AT_WORK},
    (_S.IDLE, _E.MESSAGED): _S.STARTING,
    **{(status, _E.MESSAGED): _S.STARTING for status in _ENDED},
    # Bringing the agent up: whatever the open session was doing waits for it.
    **{(status, _E.STARTING): _S.STARTING for status in OPEN_STATUSES},
    # A turn begins.
    (_S.STARTING, _E.TURN_STARTED): _S.RUNNING,
    (_S.IDLE, _E.TURN_STARTED): _S.RUNNING,
    **{(status, _E.TURN_STARTED): _S.RUNNING for status in _AT_WORK},
    # Asks. One that arrives while the session is held shows when it is released.
    (_S.RUNNING, _E.ASKED): _S.WAITING,
    (_S.WAITING, _E.ASKED): _S.WAITING,
    (_S.PAUSED, _E.ASKED): _S.PAUSED,
    (_S.WAITING, _E.ANSWERED): _S.RUNNING,
    (_S.RUNNING, _E.ANSWERED): _S.RUNNING,
    (_S.PAUSED, _E.ANSWERED): _S.RUNNING,
    # Holds.
    (_S.STARTING, _E.HELD): _S.PAUSED,
    **{(status, _E.HELD): _S.PAUSED for status in _AT_WORK},
    (_S.PAUSED, _E.RELEASED): _S.RUNNING,
    # The end of a turn, of a session.
    (_S.STARTING, _E.SETTLED): _S.IDLE,
    **{(status, _E.SETTLED): _S.IDLE for status in _AT_WORK},
    (_S.IDLE, _E.SETTLED): _S.IDLE,
    **{(status, _E.COMPLETED): _S.COMPLETED for status in OPEN_STATUSES},
    **{(status, _E.CANCELLED): _S.CANCELLED for status in OPEN_STATUSES},
    **{(status, _E.BROKE): _S.FAILED for status in OPEN_STATUSES},
}

TRANSITIONS = MappingProxyType(_TABLE)
"""(status, event) -> status. A pair that is not here cannot happen."""


def transition(current: SessionStatus, event: SessionEvent) -> SessionStatus:
    """The status after ``event``. Raises OublietteError (code ``conflict``) when it cannot happen in ``current``."""
    try:
        return TRANSITIONS[current, event]
    except KeyError:
        raise OublietteError(f"a session that is {current} cannot be {event}", code="conflict") from None


_STEPS = frozenset((old, new) for (old, _), new in _TABLE.items()) | {(status, status) for status in OPEN_STATUSES}


def require_transition(old: SessionStatus, new: SessionStatus) -> None:
    """Raise OublietteError (code ``conflict``) unless some event leads from ``old`` to ``new``.

    An open status may follow itself: that is a change of reason.
    """
    if (old, new) not in _STEPS:
        raise OublietteError(f"a session that is {old} cannot become {new}", code="conflict")


def possible(current: SessionStatus, event: SessionEvent) -> bool:
    """Whether ``event`` can happen in ``current``."""
    return (current, event) in TRANSITIONS
