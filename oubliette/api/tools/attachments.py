"""Attachments of a message: from what the client sent to bytes, within the limits."""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Final

from oubliette.agent.base import Attachment
from oubliette.api.tools.fields import invalid, shown, size_words
from oubliette.core.limits import (
    MAX_ATTACHMENT_BYTES,
    MAX_ATTACHMENTS,
    MAX_ATTACHMENTS_BYTES,
    MAX_LINE_CHARACTERS,
)

_TYPE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,63}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")
_FIELD: Final = "attachments"
_MEMBERS: Final = {"filename", "content_type", "data"}


def decode(given: Sequence[dict[str, Any]]) -> list[Attachment]:
    """Raises RequestError naming the attachment that is wrong."""
    if len(given) > MAX_ATTACHMENTS:
        raise invalid(_FIELD, f"holds more than {MAX_ATTACHMENTS}", code="too_large")
    found: list[Attachment] = []
    for number, one in enumerate(given, 1):
        found.append(_one(number, one))
        if sum(len(attachment.data) for attachment in found) > MAX_ATTACHMENTS_BYTES:
            raise invalid(_FIELD, f"are larger than {size_words(MAX_ATTACHMENTS_BYTES)} together", code="too_large")
    return found


def _one(number: int, one: dict[str, Any]) -> Attachment:
    where = f"{number} "
    unknown = sorted(name for name in one if name not in _MEMBERS and not name.startswith("_"))
    if "url" in unknown:
        raise invalid(_FIELD, where + "names a url; send its bytes as base64 in data")
    if unknown:
        raise invalid(_FIELD, where + f"has no member {shown(unknown[0])}; it takes filename, content_type, data")
    filename, content_type, data = (one.get(name) for name in ("filename", "content_type", "data"))
    if not isinstance(filename, str) or not _plain_name(filename):
        raise invalid(_FIELD, where + "needs a filename: one name without slashes and control characters")
    if not isinstance(content_type, str) or not _TYPE.fullmatch(content_type):
        raise invalid(_FIELD, where + "needs a content_type such as image/png")
    if not isinstance(data, str) or not data:
        raise invalid(_FIELD, where + "needs data: its bytes as base64")
    if len(data) > MAX_ATTACHMENT_BYTES * 4 // 3 + 4:
        raise invalid(_FIELD, where + f"is larger than {size_words(MAX_ATTACHMENT_BYTES)}", code="too_large")
    try:
        decoded = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(_FIELD, where + "has data that is not base64") from None
    if len(decoded) > MAX_ATTACHMENT_BYTES:
        raise invalid(_FIELD, where + f"is larger than {size_words(MAX_ATTACHMENT_BYTES)}", code="too_large")
    return Attachment(filename, content_type.lower(), decoded)


def _plain_name(name: str) -> bool:
    return (
        0 < len(name) <= MAX_LINE_CHARACTERS
        and name not in (".", "..")
        and not any(c in "/\\" or unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in name)
    )
