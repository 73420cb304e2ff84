"""The scripted model on the wire of OpenAI's Responses API."""

from __future__ import annotations

import json

from oubliette.core.model import Json, ModelUsage
from oubliette.gateway.scripted import ToolCall
from oubliette.gateway.scripted_encoder import Encoder, Fresh


class ResponsesEncoder(Encoder):
    """Each part is an output item, announced, filled and repeated whole when it is done."""

    def __init__(self, model: str, usage: ModelUsage, created: int, fresh: Fresh) -> None:
        super().__init__(model, usage, created, fresh)
        self._id = "resp_" + fresh(40)
        self._number = -1
        self._output: list[Json] = []
        self._item_id = ""
        self._text = ""

    def frame(self, event: Json) -> bytes:
        self._number += 1
        numbered = event | {"sequence_number": self._number}
        return b"event: " + str(event["type"]).encode() + b"\n" + super().frame(numbered)

    def begin(self) -> list[Json]:
        response = self._response("in_progress")
        return [
            {"type": "response.created", "response": response},
            {"type": "response.in_progress", "response": response},
        ]

    def open(self, kind: str) -> list[Json]:
        self._text = ""
        self._item_id = ("msg_" if kind == "text" else "rs_") + self.fresh(40)
        item = self._message("", "in_progress") if kind == "text" else self._reasoning("")
        added = {"type": "response.output_item.added", "output_index": len(self._output), "item": item}
        if kind == "text":
            part = {"type": "output_text", "text": "", "annotations": []}
            return [added, self._place({"type": "response.content_part.added", "content_index": 0, "part": part})]
        part = {"type": "summary_text", "text": ""}
        return [added, self._place({"type": "response.reasoning_summary_part.added", "summary_index": 0, "part": part})]

    def delta(self, kind: str, text: str) -> list[Json]:
        self._text += text
        if kind == "text":
            event: Json = {"type": "response.output_text.delta", "content_index": 0, "delta": text, "logprobs": []}
        else:
            event = {"type": "response.reasoning_summary_text.delta", "summary_index": 0, "delta": text}
        return [self._place(event)]

    def close(self, kind: str) -> list[Json]:
        if kind == "text":
            item = self._message(self._text, "completed")
            events: list[Json] = [
                {"type": "response.output_text.done", "content_index": 0, "text": self._text, "logprobs": []},
                {"type": "response.content_part.done", "content_index": 0, "part": item["content"][0]},
            ]
        else:
            item = self._reasoning(self._text)
            events = [
                {"type": "response.reasoning_summary_text.done", "summary_index": 0, "text": self._text},
                {"type": "response.reasoning_summary_part.done", "summary_index": 0, "part": item["summary"][0]},
            ]
        return [*map(self._place, events), self._done(item)]

    def call(self, call: ToolCall) -> list[Json]:
        item = self._function_call(call)
        self._item_id = item["id"]
        arguments = item["arguments"]
        half = len(arguments) // 2
        deltas = [
            {"type": "response.function_call_arguments.delta", "delta": part}
            for part in (arguments[:half], arguments[half:])
        ]
        done = {"type": "response.function_call_arguments.done", "name": call.name, "arguments": arguments}
        started = item | {"arguments": "", "status": "in_progress"}
        return [
            {"type": "response.output_item.added", "output_index": len(self._output), "item": started},
            *map(self._place, [*deltas, done]),
            self._done(item),
        ]

    def end(self, *, calls: bool) -> list[Json]:
        return [{"type": "response.completed", "response": self._response("completed")}]

    def whole(self, thoughts: str, text: str, calls: list[ToolCall]) -> Json:
        if thoughts:
            self._item_id = "rs_" + self.fresh(40)
            self._output.append(self._reasoning(thoughts))
        if text:
            self._item_id = "msg_" + self.fresh(40)
            self._output.append(self._message(text, "completed"))
        self._output += [self._function_call(call) for call in calls]
        return self._response("completed")

    def _place(self, event: Json) -> Json:
        return event | {"item_id": self._item_id, "output_index": len(self._output)}

    def _done(self, item: Json) -> Json:
        event = {"type": "response.output_item.done", "output_index": len(self._output), "item": item}
        self._output.append(item)
        return event

    def _message(self, text: str, status: str) -> Json:
        content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
        return {
            "id": self._item_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content if status == "completed" else [],
        }

    def _reasoning(self, text: str) -> Json:
        summary = [{"type": "summary_text", "text": text}] if text else []
        return {"id": self._item_id, "type": "reasoning", "summary": summary, "encrypted_content": "c2NyaXB0ZWQ="}

    def _function_call(self, call: ToolCall) -> Json:
        return {
            "id": "fc_" + self.fresh(40),
            "type": "function_call",
            "status": "completed",
            "call_id": "call_" + self.fresh(24),
            "name": call.name,
            "arguments": json.dumps(call.arguments),
        }

    def _response(self, status: str) -> Json:
        response: Json = {
            "id": self._id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self.model,
            "output": list(self._output),
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "store": False,
        }
        if status == "completed":
            usage = self.usage
            prompt = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
            response["usage"] = {
                "input_tokens": prompt,
                "input_tokens_details": {
                    "cached_tokens": usage.cache_read_tokens,
                    "cache_write_tokens": usage.cache_write_tokens,
                },
                "output_tokens": usage.output_tokens,
                "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
                "total_tokens": prompt + usage.output_tokens,
            }
        return response
