"""The runtime of a host that has none: every request fails with what is missing and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from oubliette.errors import RuntimeUnavailable
from oubliette.runtime.base import ContainerInfo, ContainerSpec, ExecResult, ReportProgress, RuntimeReport


class AbsentRuntime:
    """Answers what can be answered (nothing is there), refuses the rest."""

    name = "none"

    def __init__(self, reason: RuntimeUnavailable) -> None:
        self._reason = reason

    def _refuse(self) -> RuntimeUnavailable:
        return RuntimeUnavailable(self._reason.message, hint=self._reason.hint)

    async def probe(self) -> RuntimeReport:
        return RuntimeReport(self.name, ok=False, reason=self._reason.message, hint=self._reason.hint)

    async def ensure_image(self, image: str, report: ReportProgress) -> str:
        raise self._refuse()

    async def build_image(self, context: Path, tag: str, report: ReportProgress) -> str:
        raise self._refuse()

    async def create(self, spec: ContainerSpec) -> str:
        raise self._refuse()

    async def start(self, name: str) -> None:
        raise self._refuse()

    async def stop(self, name: str, grace_seconds: float) -> None:
        """Nothing runs."""

    async def remove(self, name: str) -> None:
        """Nothing is there."""

    async def inspect(self, name: str) -> ContainerInfo | None:
        return None

    async def list(self, labels: Mapping[str, str]) -> Sequence[ContainerInfo]:
        return ()

    async def exec(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        working_dir: str | None = None,
        stdin: bytes = b"",
        timeout_seconds: float = 120,
        max_output_bytes: int = 1 << 20,
    ) -> ExecResult:
        raise self._refuse()

    async def logs(self, name: str, *, tail: int = 200, max_bytes: int = 1 << 20) -> bytes:
        return b""

    async def stats(self, name: str) -> Mapping[str, int]:
        return {}
