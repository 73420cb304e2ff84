"""The toolkit of this daemon: made once in the background, waited for by whoever starts a container."""

from __future__ import annotations

import structlog
import trio

from oubliette.agent.toolkit import Toolkit, ensure_toolkit
from oubliette.errors import AgentError, OublietteError
from oubliette.home import Home

log = structlog.get_logger(__name__)

REPORT_SECONDS = 5.0


class Toolbox:
    """``get`` starts the fetch when there is none, or again when the last one failed."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._toolkit: Toolkit | None = None
        self._error: OublietteError | None = None
        self._lock = trio.Lock()
        self._told = 0.0

    @property
    def problem(self) -> OublietteError | None:
        """Why there is no toolkit, when the last try failed."""
        return self._error

    async def get(self) -> Toolkit:
        """The complete toolkit. Raises AgentError with what to do."""
        async with self._lock:
            if self._toolkit is None or not self._toolkit.path.is_dir():
                try:
                    self._toolkit = await ensure_toolkit(self._home.toolkit, self._report)
                    self._error = None
                except OublietteError as error:
                    self._error = error
                    raise AgentError(error.message, hint=error.hint, retryable=True) from error
            return self._toolkit

    async def warm(self) -> None:
        """Fetch it before anybody asks; a failure is logged and tried again by the next container."""
        try:
            toolkit = await self.get()
        except AgentError as error:
            log.warning("no toolkit", error=str(error), hint=error.hint)
        else:
            log.info("toolkit ready", version=toolkit.version)

    def _report(self, what: str, done: int, total: int) -> None:
        now = trio.current_time()
        if now - self._told >= REPORT_SECONDS or done == total:
            self._told = now
            log.info("toolkit", what=what, done=done, total=total)
