"""The log: structlog and the standard library through one sink that knows every secret.

On stderr JSON lines or text for people, in ``data/logs`` JSON lines in ten files of 50 MiB. Fields are data: ids that
do not look like ids are replaced, what agents and people wrote is left out above ``debug``, no secret gets through.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable, MutableMapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Literal, TextIO

import structlog

from oubliette.safe_text import safe_line, safe_text

FILE_BYTES = 50 << 20
FILES = 10
SHORTEST_SECRET = 6
"""Shorter ones would blot out ordinary words; the loader warns about no such key because no provider makes one."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_KEY_LIKE = re.compile(
    r"oub_[0-9a-f]{64}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|AIza[A-Za-z0-9_-]{30,}"
    r"|(?<=[Bb]earer )[A-Za-z0-9._~+/-]{16,}=*"
)
_WRITTEN_BY_OTHERS = frozenset(
    {"prompt", "text", "final_text", "output", "content", "arguments", "tool_input", "tool_output", "message_text"}
)
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_QUIET = ("hypercorn", "httpx", "httpcore", "h2", "hpack", "mcp", "asyncio", "quart", "anyio", "sse_starlette")

Fields = MutableMapping[str, Any]


class Redactor:
    """Replaces every secret it knows, and what looks like a key, by ``***``."""

    def __init__(self) -> None:
        self._secrets: set[str] = set()
        self._pattern = _KEY_LIKE

    def add(self, *secrets: str) -> None:
        """Learn secrets. Their JSON spelling is learnt too."""
        known = {secret for secret in secrets if len(secret) >= SHORTEST_SECRET}
        known |= {json.dumps(secret)[1:-1] for secret in known}
        if known - self._secrets:
            self._secrets |= known
            longest_first = sorted(self._secrets, key=len, reverse=True)
            self._pattern = re.compile("|".join([*map(re.escape, longest_first), _KEY_LIKE.pattern]))

    def clean(self, text: str) -> str:
        """``text`` without secrets."""
        return self._pattern.sub("***", text)


redactor = Redactor()
"""The one at the sink: whoever learns a secret tells it."""


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger with fields: ``log.info("container ready", container_id=..., took_ms=...)``."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def _tame(_logger: Any, level: str, fields: Fields) -> Fields:
    """Ids that are none and other people's words do not get into the log as they are."""
    for name, value in fields.items():
        if name.endswith("_id") and value is not None and not _ID.fullmatch(str(value)):
            fields[name] = "<not an id>"
        elif name in _WRITTEN_BY_OTHERS and level != "debug" and value is not None:
            fields[name] = f"<{len(value) if isinstance(value, (str, bytes)) else type(value).__name__}>"
    return fields


def _as_json(_logger: Any, _name: str, fields: Fields) -> str:
    first = {name: fields.pop(name) for name in ("ts", "level", "logger", "event") if name in fields}
    return json.dumps({**first, **fields}, default=_plain, ensure_ascii=False)


def _plain(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _as_text(_logger: Any, _name: str, fields: Fields) -> str:
    """One line for people, and a traceback under it."""
    traceback = fields.pop("exception", "")
    head = (
        f"{str(fields.pop('ts', ''))[11:19]} {fields.pop('level', '')!s:<7} {safe_line(str(fields.pop('event', '')))}"
    )
    fields.pop("logger", None)
    rest = " ".join(f"{name}={safe_line(_brief(value))}" for name, value in fields.items())
    line = f"{head}  {rest}".rstrip()
    return f"{line}\n{safe_text(traceback)}" if traceback else line


def _brief(value: Any) -> str:
    if isinstance(value, str) and value and not re.search(r"[\s=\"]", value):
        return value
    return json.dumps(value, default=_plain, ensure_ascii=False)


class _Sink(structlog.stdlib.ProcessorFormatter):
    """The last step before a line leaves the process."""

    def format(self, record: logging.LogRecord) -> str:
        return redactor.clean(super().format(record))


def _formatter(form: Literal["json", "console"]) -> logging.Formatter:
    return _Sink(
        foreign_pre_chain=[*_COMMON, structlog.stdlib.ExtraAdder()],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _tame,
            _as_json if form == "json" else _as_text,
        ],
    )


_COMMON: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
    structlog.stdlib.PositionalArgumentsFormatter(),
]


def configure_logging(
    *,
    level: str = "info",
    form: Literal["auto", "json", "console"] = "auto",
    directory: Path | None = None,
    stream: TextIO | None = None,
    secrets: Iterable[str] = (),
) -> None:
    """Send every logger of this process to ``stream`` (stderr) and, with ``directory``, to files in it.

    May be called again: earlier handlers are closed and replaced. Blocks on the disk for as long as a line takes.
    """
    redactor.add(*secrets)
    stream = stream or sys.stderr
    console: Literal["json", "console"] = ("console" if stream.isatty() else "json") if form == "auto" else form
    handlers: list[logging.Handler] = [logging.StreamHandler(stream)]
    handlers[0].setFormatter(_formatter(console))
    if directory is not None:
        file = _PrivateFile(directory / "oubliette.log", maxBytes=FILE_BYTES, backupCount=FILES - 1, encoding="utf-8")
        file.setFormatter(_formatter("json"))
        handlers.append(file)
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old.formatter, _Sink):
            root.removeHandler(old)
            old.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(_LEVELS[level])
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(_LEVELS[level], logging.WARNING))
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_COMMON,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


class _PrivateFile(RotatingFileHandler):
    """Log files are for their owner alone."""

    def _open(self) -> Any:
        stream = super()._open()
        Path(self.baseFilename).chmod(0o600)
        return stream
