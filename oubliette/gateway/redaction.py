"""Keys never reach a container, not even in a provider's own words. Sans-IO."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from urllib.parse import quote

MASK = b"[key removed]"

_KEY_LIKE = re.compile(
    rb"""(?x)
    (?: \b(?:sk|pk|rk|gsk|xai|oub|ghp|gho|ghs|hf|nvapi|key|AIza|ya29|github_pat|AKIA)
        [-_.A-Za-z0-9*]* [-_*A-Za-z0-9]{8,}
      | (?i:bearer) \s+ [-_.~+/=*A-Za-z0-9]{8,}
      | [-_A-Za-z0-9]{0,12}\*{3,}[-_A-Za-z0-9]{0,12}
    )"""
)
"""Keys as providers spell and quote them, masked ones (``sk-ab***yz``) too. A word that merely begins like a key has
no digit and no star in it."""
_TELLING = re.compile(rb"[0-9*]")


def without_keys(body: bytes, secrets: Iterable[str]) -> bytes:
    """A provider's error without the given secrets (as they are, and as JSON and URLs spell them) and without anything
    that looks like a key."""
    for secret in secrets:
        for spelling in _spellings(secret):
            body = body.replace(spelling, MASK)
    return _KEY_LIKE.sub(lambda match: MASK if _TELLING.search(match.group()) else match.group(), body)


def _spellings(secret: str) -> list[bytes]:
    in_json = json.dumps(secret)[1:-1]
    spellings = {secret, in_json, in_json.replace("/", "\\/"), quote(secret, safe="")}
    return sorted((spelling.encode() for spelling in spellings), key=len, reverse=True)


class SecretFilter:
    """Takes a secret out of a stream of bytes. Nothing is held back but bytes that may be the secret's beginning."""

    def __init__(self, secret: str | None) -> None:
        self._secret = (secret or "").encode()
        self._held = b""
        self.found = False

    def feed(self, data: bytes) -> bytes:
        """What may go on now."""
        if len(self._secret) < 8:  # not a key; taking a short word out of answers would only damage them
            return data
        data = self._held + data
        if self._secret in data:
            self.found = True
            data = data.replace(self._secret, MASK)
        keep = self._beginning_at_end(data)
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep]

    def finish(self) -> bytes:
        """What was held back."""
        rest, self._held = self._held, b""
        return rest

    def _beginning_at_end(self, data: bytes) -> int:
        """Length of the longest end of ``data`` that the secret begins with."""
        first = self._secret[:1]
        start = data.find(first, max(0, len(data) - len(self._secret) + 1))
        while start >= 0:
            if self._secret.startswith(data[start:]):
                return len(data) - start
            start = data.find(first, start + 1)
        return 0
