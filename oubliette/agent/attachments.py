"""Attachments as OpenCode's file parts. Pure.

Whatever a provider cannot take in a message makes the turn fail and, being in the history, every later turn too. So
only three forms are sent: the four kinds of image that all providers read, PDF, and text as ``text/plain``. OpenCode
itself replaces images and PDFs by a line of text for a model that cannot read them.
"""

from __future__ import annotations

import base64

from oubliette.agent.base import Attachment
from oubliette.core.model import Json

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
)


def attachment_type(data: bytes) -> str | None:
    """As what the model is given this: by its content, not by what somebody claims. None: it cannot be."""
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if b"\0" in data:
        return None
    try:
        data.decode()
    except UnicodeDecodeError:
        return None
    return "text/plain"


def attachment_part(attachment: Attachment) -> Json:
    """The part of a prompt; for what cannot be sent a line of text that says so."""
    name = " ".join(attachment.filename.split())[:200] or "attachment"
    kind = attachment_type(attachment.data)
    if kind is None:
        size = len(attachment.data)
        note = f"[The attachment {name} ({size} bytes) is neither text nor an image nor a PDF and was left out.]"
        return {"type": "text", "text": note}
    data = base64.b64encode(attachment.data).decode("ascii")
    return {"type": "file", "mime": kind, "filename": name, "url": f"data:{kind};base64,{data}"}
