"""Usage in answers of the Responses API: with the event that ends the response, whichever way."""

from __future__ import annotations

from typing import Any

from oubliette.core.model import Json
from oubliette.gateway.usage import UsageReader, count, inner, items, length, message_of

_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
_PRICED = frozenset({"message", "reasoning", "function_call", "custom_tool_call"})


class OpenAiUsage(UsageReader):
    def event(self, value: Json) -> None:
        kind = value.get("type")
        if kind in _ENDS:
            self.body(value.get("response"))
        elif kind == "error":
            self.reported.error = message_of(value.get("error") or value)
        elif isinstance(kind, str) and kind.endswith(".delta"):
            self.reported.characters += length(value.get("delta"))

    def body(self, value: Any) -> None:
        usage = inner(value, "usage")
        reported = self.reported
        reported.cache_read_tokens = count(usage, "input_tokens_details", "cached_tokens")
        reported.cache_write_tokens = count(usage, "input_tokens_details", "cache_write_tokens")
        cached = reported.cache_read_tokens + reported.cache_write_tokens
        reported.input_tokens = max(0, count(usage, "input_tokens") - cached)
        reported.output_tokens = count(usage, "output_tokens")
        reported.reasoning_tokens = count(usage, "output_tokens_details", "reasoning_tokens")
        reported.complete = isinstance(usage, dict) and reported.input_known
        reported.unpriced = any(inner(item, "type") not in _PRICED for item in items(value, "output"))
        if inner(value, "error"):
            reported.error = message_of(inner(value, "error"))
