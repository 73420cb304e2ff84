"""Values in the configuration that have a spelling of their own: sizes, addresses, names, URLs."""

from __future__ import annotations

import re
import uuid
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, PlainSerializer, SecretStr, WithJsonSchema

from oubliette.core.notices import signing_key

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_SIZE_SCHEMA = "^[0-9.]+ ?[kKmMgGtT]?([iI]?[bB])?$"
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def parse_size(value: Any) -> Any:
    """Bytes from ``"4g"``, ``"512MiB"``, ``"1.5 G"`` (powers of 1024, as docker reads them) or a plain number."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError('is not a size: write bytes as a number, or e.g. "512m", "4g"')
    return int(float(match[1]) * (1 << _UNITS[match[2].lower()]))


def format_size(size: int) -> str | int:
    """The shortest spelling that ``parse_size`` reads back as the same number."""
    for unit in ("t", "g", "m", "k"):
        if size and size % (1 << _UNITS[unit]) == 0:
            return f"{size >> _UNITS[unit]}{unit}"
    return size


Size = Annotated[
    int,
    BeforeValidator(parse_size),
    Field(gt=0),
    PlainSerializer(format_size, when_used="json"),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": _SIZE_SCHEMA}]}),
]
"""A number of bytes; text such as ``"4g"`` is read."""


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port``, ``[v6]:port`` or ``:port`` (every interface: ``0.0.0.0``). Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError('is not an address: write "host:port", e.g. "127.0.0.1:8080"')
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError('is not an address: an IPv6 host stands in brackets, e.g. "[::1]:8080"')
    if re.search(r"[\s/@]", host):
        raise ValueError('is not an address: write "host:port", without a scheme or a path')
    return host or "0.0.0.0", int(port)  # noqa: S104 - that is what ":8080" asks for; the loader warns


def check_address(value: str) -> str:
    split_address(value)
    return value


def check_name(value: str) -> str:
    """Names of credentials, models and servers travel in paths, headers and log lines."""
    if not _NAME.fullmatch(value):
        raise ValueError("is not a name: up to 64 letters, digits, dots, dashes and underscores, no dash first")
    return value


def check_url(value: str) -> str:
    """An absolute http or https URL without userinfo; a final slash is taken off."""
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError('is not a URL: it must begin with "https://" or "http://" and name a host')
    if parts.username or parts.password:
        raise ValueError("must not carry a user name or password")
    return value.rstrip("/")


def check_receiver(value: str) -> str:
    """Like ``check_url``, but kept as it is written: to a receiver a final slash is part of its path."""
    check_url(value)
    if not value.isascii() or not value.isprintable() or " " in value or "#" in value:
        raise ValueError("must be spelled in printable ASCII, without spaces and fragment")
    try:
        _ = urlsplit(value).port
    except ValueError:
        raise ValueError("has a port that is none") from None
    return value


def check_signing_secret(value: SecretStr) -> SecretStr:
    """As Standard Webhooks spells it."""
    try:
        signing_key(value.get_secret_value())
    except ValueError:
        raise ValueError(
            'must be "whsec_" and 24 to 64 random bytes in base64: make one with '
            "python3 -c 'import base64, os; print(\"whsec_\" + base64.b64encode(os.urandom(32)).decode())'"
        ) from None
    return value


def check_project_id(value: str) -> str:
    """An id, not a name: of a name nothing would ever be told."""
    try:
        canonical = str(uuid.UUID(value))
    except ValueError:
        canonical = ""
    if canonical != value:
        raise ValueError("is not the id of a project: see oubliette project list")
    return value
