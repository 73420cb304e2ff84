"""Usage in answers of the Messages API: input with ``message_start``, output (cumulative) with ``message_delta``."""

from __future__ import annotations

from typing import Any

from oubliette.core.model import Json
from oubliette.gateway.usage import UsageReader, count, inner, items, length, message_of


class AnthropicUsage(UsageReader):
    def event(self, value: Json) -> None:
        match value.get("type"):
            case "message_start":
                self._usage(inner(value, "message", "usage"))
            case "message_delta":
                self._usage(value.get("usage"))
                self.reported.complete = count(value, "usage", "output_tokens") > 0
            case "content_block_delta":
                delta = value.get("delta")
                self.reported.characters += sum(
                    length(inner(delta, name)) for name in ("text", "thinking", "partial_json")
                )
            case "error":
                self.reported.error = message_of(value.get("error"))

    def body(self, value: Json) -> None:
        self._usage(value.get("usage"))
        self.reported.complete = count(value, "usage", "output_tokens") > 0
        self.reported.characters = sum(length(inner(block, "text")) for block in items(value, "content"))

    def _usage(self, usage: Any) -> None:
        """Every report repeats the whole; one that leaves a number out says nothing about it."""
        reported = self.reported
        reported.input_tokens = count(usage, "input_tokens") or reported.input_tokens
        reported.output_tokens = max(count(usage, "output_tokens"), reported.output_tokens)
        reported.cache_read_tokens = count(usage, "cache_read_input_tokens") or reported.cache_read_tokens
        reported.cache_write_tokens = count(usage, "cache_creation_input_tokens") or reported.cache_write_tokens
        hour = count(usage, "cache_creation", "ephemeral_1h_input_tokens")
        reported.cache_write_hour_tokens = hour or reported.cache_write_hour_tokens
        reported.reasoning_tokens = (
            count(usage, "output_tokens_details", "thinking_tokens") or reported.reasoning_tokens
        )
        searches = inner(usage, "server_tool_use")
        reported.unpriced |= isinstance(searches, dict) and any(count(searches, name) for name in searches)
