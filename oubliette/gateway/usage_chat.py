"""Usage in answers of the chat completions API: in the last chunk when it was asked for, or in every one."""

from __future__ import annotations

from typing import Any

from oubliette.core.model import Json
from oubliette.gateway.usage import UsageReader, count, inner, items, length, message_of


class ChatUsage(UsageReader):
    def event(self, value: Json) -> None:
        if isinstance(value.get("usage"), dict):
            self._usage(value["usage"])
        if value.get("error"):
            self.reported.error = message_of(value["error"])
        for choice in items(value, "choices"):
            self._characters(inner(choice, "delta"))

    def body(self, value: Json) -> None:
        if isinstance(value.get("usage"), dict):
            self._usage(value["usage"])
        for choice in items(value, "choices"):
            self._characters(inner(choice, "message"))

    def _characters(self, message: Any) -> None:
        for name in ("content", "reasoning_content", "reasoning"):
            self.reported.characters += length(inner(message, name))
        for call in items(message, "tool_calls"):
            self.reported.characters += length(inner(call, "function", "arguments"))

    def _usage(self, usage: Json) -> None:
        """``prompt_tokens`` include the cached ones. If the total says so, reasoning is not in the completion."""
        reported = self.reported
        prompt, completion = count(usage, "prompt_tokens"), count(usage, "completion_tokens")
        reasoning = count(usage, "completion_tokens_details", "reasoning_tokens")
        cached = count(usage, "prompt_tokens_details", "cached_tokens") or count(usage, "prompt_cache_hit_tokens")
        written = count(usage, "prompt_tokens_details", "cache_write_tokens")
        reported.cache_read_tokens = min(cached, prompt)
        reported.cache_write_tokens = min(written, prompt - reported.cache_read_tokens)
        reported.input_tokens = prompt - reported.cache_read_tokens - reported.cache_write_tokens
        outside = reasoning > 0 and count(usage, "total_tokens") == prompt + completion + reasoning
        reported.output_tokens = completion + (reasoning if outside else 0)
        reported.reasoning_tokens = reasoning
        reported.complete = prompt > 0
