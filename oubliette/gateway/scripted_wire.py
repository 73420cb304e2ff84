"""How the scripted model's answers look on each wire, faithfully enough for the providers' own SDKs."""

from __future__ import annotations

import json

from oubliette.core.model import Json, ModelUsage
from oubliette.gateway.models import Wire
from oubliette.gateway.scripted import ToolCall
from oubliette.gateway.scripted_encoder import Encoder, Fresh, cut_up
from oubliette.gateway.scripted_responses import ResponsesEncoder


def encoder(wire: Wire, model: str, usage: ModelUsage, created: int, fresh: Fresh) -> Encoder:
    """The encoder of that wire."""
    kinds: dict[Wire, type[Encoder]] = {
        Wire.ANTHROPIC: AnthropicEncoder,
        Wire.OPENAI: ResponsesEncoder,
        Wire.GOOGLE: GoogleEncoder,
        Wire.CHAT: ChatEncoder,
    }
    return kinds[wire](model, usage, created, fresh)


class AnthropicEncoder(Encoder):
    """The Messages API."""

    _index = -1

    def frame(self, event: Json) -> bytes:
        return b"event: " + str(event["type"]).encode() + b"\n" + super().frame(event)

    def begin(self) -> list[Json]:
        message = self._message([], None) | {"usage": self._usage(output=1)}
        return [{"type": "message_start", "message": message}, {"type": "ping"}]

    def open(self, kind: str) -> list[Json]:
        block = (
            {"type": "text", "text": ""} if kind == "text" else {"type": "thinking", "thinking": "", "signature": ""}
        )
        return [self._start(block)]

    def delta(self, kind: str, text: str) -> list[Json]:
        if kind == "text":
            return [self._delta({"type": "text_delta", "text": text})]
        return [self._delta({"type": "thinking_delta", "thinking": text})]

    def close(self, kind: str) -> list[Json]:
        signature = [self._delta({"type": "signature_delta", "signature": "c2NyaXB0ZWQ="})] if kind == "thought" else []
        return [*signature, {"type": "content_block_stop", "index": self._index}]

    def call(self, call: ToolCall) -> list[Json]:
        block = {"type": "tool_use", "id": "toolu_" + self.fresh(24), "name": call.name, "input": {}}
        start = self._start(block)
        arguments = [
            self._delta({"type": "input_json_delta", "partial_json": part})
            for part in ("", *cut_up(json.dumps(call.arguments), 2))
        ]
        return [start, *arguments, {"type": "content_block_stop", "index": self._index}]

    def end(self, *, calls: bool) -> list[Json]:
        delta = {"stop_reason": "tool_use" if calls else "end_turn", "stop_sequence": None}
        usage = {"output_tokens": self.usage.output_tokens}
        return [{"type": "message_delta", "delta": delta, "usage": usage}, {"type": "message_stop"}]

    def whole(self, thoughts: str, text: str, calls: list[ToolCall]) -> Json:
        content: list[Json] = []
        if thoughts:
            content.append({"type": "thinking", "thinking": thoughts, "signature": "c2NyaXB0ZWQ="})
        if text:
            content.append({"type": "text", "text": text})
        for call in calls:
            identity = "toolu_" + self.fresh(24)
            content.append({"type": "tool_use", "id": identity, "name": call.name, "input": call.arguments})
        return self._message(content, "tool_use" if calls else "end_turn") | {
            "usage": self._usage(output=self.usage.output_tokens)
        }

    def _message(self, content: list[Json], stop: str | None) -> Json:
        return {
            "id": "msg_" + self.fresh(24),
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": stop,
            "stop_sequence": None,
        }

    def _usage(self, *, output: int) -> Json:
        return {
            "input_tokens": self.usage.input_tokens,
            "cache_creation_input_tokens": self.usage.cache_write_tokens,
            "cache_read_input_tokens": self.usage.cache_read_tokens,
            "output_tokens": output,
        }

    def _start(self, block: Json) -> Json:
        self._index += 1
        return {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


class ChatEncoder(Encoder):
    """Chat completions."""

    _calls = -1

    def __init__(self, model: str, usage: ModelUsage, created: int, fresh: Fresh) -> None:
        super().__init__(model, usage, created, fresh)
        self._id = "chatcmpl-" + fresh(24)

    def begin(self) -> list[Json]:
        return [self._chunk({"role": "assistant", "content": ""})]

    def open(self, kind: str) -> list[Json]:
        return []

    def delta(self, kind: str, text: str) -> list[Json]:
        return [self._chunk({"content" if kind == "text" else "reasoning_content": text})]

    def close(self, kind: str) -> list[Json]:
        return []

    def call(self, call: ToolCall) -> list[Json]:
        self._calls += 1
        function = {"name": call.name, "arguments": ""}
        start = {"index": self._calls, "id": "call_" + self.fresh(24), "type": "function", "function": function}
        parts = [
            {"index": self._calls, "function": {"arguments": part}} for part in cut_up(json.dumps(call.arguments), 2)
        ]
        return [self._chunk({"tool_calls": [part]}) for part in (start, *parts)]

    def end(self, *, calls: bool) -> list[Json]:
        last = self._chunk({}, "tool_calls" if calls else "stop")
        return [last, self._chunk({}) | {"choices": [], "usage": self._usage()}]

    def trailer(self) -> bytes:
        return b"data: [DONE]\n\n"

    def whole(self, thoughts: str, text: str, calls: list[ToolCall]) -> Json:
        message: Json = {"role": "assistant", "content": text or None}
        if thoughts:
            message["reasoning_content"] = thoughts
        if calls:
            message["tool_calls"] = [
                {
                    "id": "call_" + self.fresh(24),
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
                }
                for call in calls
            ]
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
        head = {"id": self._id, "object": "chat.completion", "created": self.created, "model": self.model}
        return head | {"choices": [choice], "usage": self._usage()}

    def _chunk(self, delta: Json, finish: str | None = None) -> Json:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }

    def _usage(self) -> Json:
        usage = self.usage
        prompt = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": usage.output_tokens,
            "total_tokens": prompt + usage.output_tokens,
            "prompt_tokens_details": {
                "cached_tokens": usage.cache_read_tokens,
                "cache_write_tokens": usage.cache_write_tokens,
            },
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        }


class GoogleEncoder(Encoder):
    """generateContent."""

    def __init__(self, model: str, usage: ModelUsage, created: int, fresh: Fresh) -> None:
        super().__init__(model, usage, created, fresh)
        self._id = fresh(22)

    def begin(self) -> list[Json]:
        return []

    def open(self, kind: str) -> list[Json]:
        return []

    def delta(self, kind: str, text: str) -> list[Json]:
        return [self._chunk([{"text": text} if kind == "text" else {"text": text, "thought": True}])]

    def close(self, kind: str) -> list[Json]:
        return []

    def call(self, call: ToolCall) -> list[Json]:
        part = {"functionCall": {"name": call.name, "args": call.arguments}, "thoughtSignature": "c2NyaXB0ZWQ="}
        return [self._chunk([part])]

    def end(self, *, calls: bool) -> list[Json]:
        return [self._chunk([{"text": ""}], "STOP")]

    def whole(self, thoughts: str, text: str, calls: list[ToolCall]) -> Json:
        parts: list[Json] = [{"text": thoughts, "thought": True}] if thoughts else []
        parts += [{"text": text}] if text else []
        parts += [{"functionCall": {"name": call.name, "args": call.arguments}} for call in calls]
        return self._chunk(parts, "STOP")

    def _chunk(self, parts: list[Json], finish: str | None = None) -> Json:
        candidate: Json = {"content": {"role": "model", "parts": parts}, "index": 0}
        usage = self.usage
        prompt = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
        metadata: Json = {"promptTokenCount": prompt, "totalTokenCount": prompt}
        if usage.cache_read_tokens:
            metadata["cachedContentTokenCount"] = usage.cache_read_tokens
        if finish:
            candidate["finishReason"] = finish
            metadata["candidatesTokenCount"] = usage.output_tokens - min(usage.reasoning_tokens, usage.output_tokens)
            metadata["thoughtsTokenCount"] = usage.reasoning_tokens
            metadata["totalTokenCount"] = prompt + usage.output_tokens
        return {
            "candidates": [candidate],
            "usageMetadata": metadata,
            "modelVersion": self.model,
            "responseId": self._id,
        }
