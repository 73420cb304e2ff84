"""Where every call arrives, whichever door it came through: counted, ended with its token, run by the table."""

from __future__ import annotations

from oubliette.api.live import Origin
from oubliette.api.shared import Shared
from oubliette.api.tools.registry import Call, Outcome, Progress, Registry, failure
from oubliette.errors import RequestError


class Desk:
    """The registry with what its calls share."""

    def __init__(self, shared: Shared, registry: Registry) -> None:
        self.shared = shared
        self.registry = registry

    async def run(self, origin: Origin, tool: str, arguments: object, progress: Progress | None = None) -> Outcome:
        """One call from start to end. Never raises but for cancellation."""
        call = Call(self.shared, origin.principal, origin.request_id, progress)
        try:
            with self.shared.live.call(origin.principal, origin):
                return await self.registry.call(call, tool, arguments)
        except RequestError as error:
            return failure(error, origin.request_id)
