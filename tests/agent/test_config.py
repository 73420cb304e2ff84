"""What OpenCode is told at its start, and small pure pieces beside it."""

from __future__ import annotations

import json
import time

import pytest

from oubliette.agent.attachments import attachment_part, attachment_type
from oubliette.agent.base import Attachment
from oubliette.agent.message_id import new_message_id
from oubliette.agent.opencode_config import (
    ModelCost,
    ModelEntry,
    alias_on_wire,
    mcp_server,
    opencode_config,
    opencode_process,
    variant_for,
    wire_model,
)
from oubliette.core.model import Reasoning
from tests.agent.images import png

MODELS = [
    ModelEntry("opus", "anthropic", 200_000, 32_000, pdf=True, reasoning=True, cost=ModelCost(5, 25, 0.5, 6.25)),
    ModelEntry("blind", "openai-compatible", 32_000, 4_000, images=False, tool_call=False),
    ModelEntry("gem", "google", 1_000_000, 64_000, model="gemini-3-pro-preview"),
    ModelEntry("gpt", "openai", 400_000, 128_000, reasoning=True, name="GPT"),
]


def test_every_kind_is_a_provider_of_its_own_with_everything_declared() -> None:
    config = opencode_config(MODELS, capability="cap_1", default_model="gpt")
    providers = config["provider"]
    assert {name: (entry["npm"], entry["options"]["baseURL"]) for name, entry in providers.items()} == {
        "oubliette-anthropic": ("@ai-sdk/anthropic", "http://127.0.0.1:4097/anthropic/v1"),
        "oubliette-openai-compatible": ("@ai-sdk/openai-compatible", "http://127.0.0.1:4097/openai-compatible/v1"),
        "oubliette-google": ("@ai-sdk/google", "http://127.0.0.1:4097/google/v1beta"),
        "oubliette-openai": ("@ai-sdk/openai", "http://127.0.0.1:4097/openai/v1"),
        "oubliette-warm": ("@ai-sdk/openai", "http://127.0.0.1:9/v1"),
    }
    for name, entry in providers.items():
        if name != "oubliette-warm":
            assert entry["options"]["apiKey"] == "cap_1"
            assert entry["options"]["headerTimeout"] is False
            assert entry["options"]["timeout"] is False
    opus = providers["oubliette-anthropic"]["models"]["opus"]
    assert opus["limit"] == {"context": 200_000, "output": 32_000}
    assert opus["modalities"]["input"] == ["text", "image", "pdf"]
    assert opus["cost"] == {"input": 5, "output": 25, "cache_read": 0.5, "cache_write": 6.25}
    blind = providers["oubliette-openai-compatible"]["models"]["blind"]
    assert blind["modalities"]["input"] == ["text"]
    assert blind["attachment"] is False
    assert blind["tool_call"] is False
    assert config["model"] == config["small_model"] == "oubliette-openai/gpt"
    assert config["permission"] == {"*": "allow", "task": "deny"}
    assert config["share"] == "disabled"
    assert config["autoupdate"] is False
    json.dumps(config)


def test_the_config_without_a_model_still_starts() -> None:
    config = opencode_config([], capability="c")
    assert list(config["provider"]) == ["oubliette-warm"]
    assert "model" not in config


def test_a_model_is_asked_for_by_its_alias_or_by_name_and_alias() -> None:
    assert [wire_model(entry) for entry in MODELS] == ["opus", "blind", "gemini-3-pro-preview@gem", "gpt"]
    named = ModelEntry("x", "openai-compatible", 1, 1, model="meta/llama@v2")
    assert wire_model(named) == "llama@v2@x"
    for entry in (*MODELS, named):
        assert alias_on_wire(wire_model(entry)) == entry.alias


def test_mcp_servers_keep_known_keys_and_never_open_a_browser() -> None:
    assert mcp_server({"type": "remote", "url": "https://x", "headers": {"A": "b"}, "oauth": {}, "cwd": "/"}) == {
        "type": "remote",
        "oauth": False,
        "url": "https://x",
        "headers": {"A": "b"},
    }
    assert mcp_server({"command": ["x"], "environment": {"A": "b"}, "timeout": 5, "shell": True}) == {
        "type": "local",
        "command": ["x"],
        "environment": {"A": "b"},
        "timeout": 5,
    }


def test_the_process_gets_exactly_its_own_environment() -> None:
    argv, env = opencode_process("secret")
    assert argv == ["/opt/oubliette/bin/opencode", "serve", "--port", "4096", "--hostname", "127.0.0.1"]
    assert env["OPENCODE_SERVER_PASSWORD"] == "secret"
    assert env["PATH"].endswith(":/opt/oubliette/tools")
    assert env["OUBLIETTE_STAMPED"] == "/run/oubliette/stamped.json"
    for name in ("AUTOUPDATE", "MODELS_FETCH", "LSP_DOWNLOAD", "DEFAULT_PLUGINS", "PROJECT_CONFIG", "SHARE"):
        assert env[f"OPENCODE_DISABLE_{name}"] == "1"
    assert "secret" not in " ".join(argv)


@pytest.mark.parametrize(
    ("reasoning", "variants", "chosen"),
    [
        (Reasoning.MEDIUM, ["low", "medium", "high"], "medium"),
        (Reasoning.MEDIUM, ["high", "max"], "high"),
        (Reasoning.OFF, ["none", "low"], "none"),
        (Reasoning.OFF, ["low", "high"], None),
        (Reasoning.MAX, ["low", "medium", "high", "xhigh"], "xhigh"),
        (Reasoning.LOW, ["high", "max"], None),
        (Reasoning.HIGH, [], None),
    ],
)
def test_reasoning_takes_the_nearest_variant_there_is(
    reasoning: Reasoning, variants: list[str], chosen: str | None
) -> None:
    assert variant_for(reasoning, variants) == chosen


def test_message_ids_are_ascending_and_like_opencodes_own() -> None:
    ids = [new_message_id() for _ in range(5000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 5000
    for one in ids[:10]:
        assert one.startswith("msg_")
        assert len(one) == 30
        assert one[4:].isalnum()
    stamp = int(ids[-1][4:16], 16)
    now = (time.time_ns() // 1_000_000 * 4096) & 0xFFFF_FFFF_FFFF
    assert abs(stamp - now) < 60_000 * 4096


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (png(), "image/png"),
        (b"\xff\xd8\xff\xe0x", "image/jpeg"),
        (b"GIF89a..", "image/gif"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
        (b"%PDF-1.7", "application/pdf"),
        ("größe".encode(), "text/plain"),
        (b"", "text/plain"),
        (b"a\0b", None),
        (b"\xff\xfe", None),
    ],
)
def test_an_attachment_is_what_its_bytes_say(data: bytes, kind: str | None) -> None:
    assert attachment_type(data) == kind
    part = attachment_part(Attachment("a\nb.txt", "image/png", data))
    if kind is None:
        assert part["type"] == "text"
    else:
        assert part["mime"] == kind
        assert part["filename"] == "a b.txt"
        assert part["url"].startswith(f"data:{kind};base64,")
