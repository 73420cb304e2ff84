"""The scripted model as a server would answer: status, headers, and pieces to send. Pure but for the time and ids."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

from oubliette.clock import fresh_hex
from oubliette.core.model import Json
from oubliette.gateway.http1 import Headers
from oubliette.gateway.models import Wire
from oubliette.gateway.refusals import error_body
from oubliette.gateway.scripted import Scripted
from oubliette.gateway.scripted_encoder import Piece, stream, whole
from oubliette.gateway.scripted_request import read_request
from oubliette.gateway.scripted_wire import encoder


@dataclass(frozen=True, slots=True)
class ScriptedReply:
    """``pieces`` are to be sent one by one, with their pauses; a piece with ``cut`` ends the connection."""

    status: int
    headers: Headers
    pieces: Iterator[Piece]


def reply(scripted: Scripted, wire: Wire, body: Json, *, streaming: bool, model: str, session: str) -> ScriptedReply:
    """What the scripted model answers to a request on that wire."""
    conversation = read_request(wire, body, streaming=streaming)
    answer = scripted.answer(conversation, session)
    if answer.failure is not None:
        status = answer.failure.status
        refusal = json.dumps(error_body(wire, status, answer.failure.message)).encode()
        headers = [("content-type", "application/json"), *([("retry-after", "1")] if status == 429 else [])]
        return ScriptedReply(status, headers, iter([Piece(refusal)]))
    made = encoder(wire, model, answer.usage, int(time.time()), fresh_hex)
    if streaming:
        headers = [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache")]
        return ScriptedReply(200, headers, stream(made, answer))
    return ScriptedReply(200, [("content-type", "application/json")], whole(made, answer))
