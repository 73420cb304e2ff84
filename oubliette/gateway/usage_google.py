"""Usage in answers of generateContent: ``usageMetadata``, cumulative, in every chunk; final once a reason to finish is
given."""

from __future__ import annotations

from oubliette.core.model import Json
from oubliette.gateway.usage import UsageReader, count, inner, items, length, message_of


class GoogleUsage(UsageReader):
    def event(self, value: Json) -> None:
        metadata = value.get("usageMetadata")
        reported = self.reported
        if isinstance(metadata, dict):
            thoughts = count(metadata, "thoughtsTokenCount")
            cached = count(metadata, "cachedContentTokenCount")
            prompt = count(metadata, "promptTokenCount") + count(metadata, "toolUsePromptTokenCount")
            reported.cache_read_tokens = min(cached, prompt)
            reported.input_tokens = prompt - reported.cache_read_tokens
            reported.output_tokens = count(metadata, "candidatesTokenCount") + thoughts
            reported.reasoning_tokens = thoughts
        for candidate in items(value, "candidates"):
            for part in items(candidate, "content", "parts"):
                reported.characters += length(inner(part, "text")) + len(str(inner(part, "functionCall") or ""))
            if inner(candidate, "finishReason"):
                reported.complete = reported.input_known
            if inner(candidate, "groundingMetadata", "webSearchQueries"):
                reported.unpriced = True
        if inner(value, "promptFeedback", "blockReason"):
            reported.complete = reported.input_known
        if value.get("error"):
            reported.error = message_of(value["error"])

    def body(self, value: Json) -> None:
        self.event(value)
