"""The time limit of a turn: the deadline of whatever cancel scope the turn is in, which can stand still."""

from __future__ import annotations

import math

import trio


class TurnClock:
    """Stands until ``cover`` gives it a scope; then runs while no reason to stand is left."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._scope = trio.CancelScope()
        self._covers = False
        self._runs = False
        self._reasons: set[str] = set()

    @property
    def seconds_left(self) -> float:
        """Of the limit; what passes while it stands does not count."""
        return max(0.0, self._scope.deadline - trio.current_time()) if self._runs else self._left

    def cover(self, scope: trio.CancelScope) -> None:
        """From now on it is this scope that is cancelled when the time is over."""
        self._set(running=False)
        self._scope = scope
        self._covers = True
        self._set(running=not self._reasons)

    def stand(self, reason: str, *, still: bool) -> None:
        """There is that reason to stand, or no longer."""
        (self._reasons.add if still else self._reasons.discard)(reason)
        self._set(running=self._covers and not self._reasons)

    def _set(self, *, running: bool) -> None:
        if running and not self._runs:
            self._scope.deadline = trio.current_time() + self._left
        elif not running and self._runs:
            self._left = max(0.0, self._scope.deadline - trio.current_time())
            self._scope.deadline = math.inf
        self._runs = running
