"""The fixed list of what may be asked: one POST path per wire. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from oubliette.core.model import Json
from oubliette.errors import RequestError
from oubliette.gateway import rebuild_anthropic, rebuild_chat, rebuild_google, rebuild_openai
from oubliette.gateway.models import ResolvedModel, Wire
from oubliette.gateway.rebuild import Rebuilt
from oubliette.gateway.usage import UsageReader
from oubliette.gateway.usage_anthropic import AnthropicUsage
from oubliette.gateway.usage_chat import ChatUsage
from oubliette.gateway.usage_google import GoogleUsage
from oubliette.gateway.usage_openai import OpenAiUsage

_PATHS = {
    "/anthropic/v1/messages": Wire.ANTHROPIC,
    "/openai/v1/responses": Wire.OPENAI,
    "/openai-compatible/v1/chat/completions": Wire.CHAT,
}
_GOOGLE_PATH = re.compile(r"/google/v1beta/models/([^/:?#]{1,300}):(generateContent|streamGenerateContent)")
_USAGE: dict[Wire, type[UsageReader]] = {
    Wire.ANTHROPIC: AnthropicUsage,
    Wire.OPENAI: OpenAiUsage,
    Wire.GOOGLE: GoogleUsage,
    Wire.CHAT: ChatUsage,
}


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes. ``alias`` and ``streaming`` are known for Google, whose path says them."""

    wire: Wire
    alias: str | None = None
    streaming: bool | None = None

    def asked_model(self, body: Json) -> str:
        """The model's name in the request. Raises RequestError when there is none."""
        name = self.alias if self.wire is Wire.GOOGLE else body.get("model")
        if not isinstance(name, str) or not 0 < len(name) <= 300:
            raise RequestError("invalid_argument", "The request names no model.", field="model")
        return name

    def asked_output(self, body: Json) -> int | None:
        """How many tokens of output were asked for."""
        generation = body.get("generationConfig")
        holder = generation if self.wire is Wire.GOOGLE and isinstance(generation, dict) else body
        for name in ("max_completion_tokens", "max_output_tokens", "maxOutputTokens", "max_tokens"):
            value = holder.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return None

    def streams(self, body: Json) -> bool:
        """Whether the answer is to come as events."""
        return bool(self.streaming) if self.wire is Wire.GOOGLE else body.get("stream") is True

    def rebuild(self, body: Json, model: ResolvedModel) -> Rebuilt:
        """The request as it goes to the provider."""
        match self.wire:
            case Wire.ANTHROPIC:
                return rebuild_anthropic.rebuild(body, model)
            case Wire.OPENAI:
                return rebuild_openai.rebuild(body, model)
            case Wire.GOOGLE:
                return rebuild_google.rebuild(body, model, streaming=bool(self.streaming))
            case Wire.CHAT:
                return rebuild_chat.rebuild(body, model)

    def upstream_path(self, model: ResolvedModel, *, streaming: bool) -> str:
        """What follows the base URL."""
        match self.wire:
            case Wire.ANTHROPIC:
                return "/messages"
            case Wire.OPENAI:
                return "/responses"
            case Wire.CHAT:
                return "/chat/completions"
            case Wire.GOOGLE:
                action = "streamGenerateContent?alt=sse" if streaming else "generateContent"
                return f"/models/{model.model.removeprefix('models/')}:{action}"

    def usage(self, *, streaming: bool) -> UsageReader:
        """A reader of this wire's usage."""
        return _USAGE[self.wire](streaming=streaming)


def wire_of(target: str) -> Wire | None:
    """Which provider's words to refuse in."""
    first = target.partition("?")[0].split("/")[1:2]
    return Wire(first[0]) if first and first[0] in set(Wire) else None


def find_route(method: str, target: str) -> Route:
    """The route of a request. Raises RequestError not_found for every other path and method."""
    path = target.partition("?")[0]
    route: Route | None = None
    if path in _PATHS:
        route = Route(_PATHS[path])
    elif match := _GOOGLE_PATH.fullmatch(path):
        route = Route(Wire.GOOGLE, unquote(match[1]), match[2] == "streamGenerateContent")
    if route is None:
        raise RequestError("not_found", f"There is no {path[:100]} here.")
    if method != "POST":
        raise RequestError("unknown_action", f"{path[:100]} takes POST, not {method[:20]}.")
    return route
