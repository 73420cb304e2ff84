"""The log's promises: one sink, no secrets, no prompts, data stays data."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from oubliette import log
from oubliette.log import configure_logging, get_logger, redactor


@pytest.fixture(autouse=True)
def _leave_no_logging_behind() -> Iterator[None]:
    yield
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(handler)
            handler.close()
    logging.captureWarnings(False)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_time_level_and_fields(tmp_path: Path) -> None:
    stream = io.StringIO()
    configure_logging(stream=stream, directory=tmp_path)
    get_logger("oubliette.test").info("container ready", container_id="c1", took_ms=12)
    (line,) = lines(stream)
    assert line.pop("ts").endswith("Z")
    assert line == {
        "level": "info", "logger": "oubliette.test", "event": "container ready", "container_id": "c1", "took_ms": 12,
    }  # fmt: skip
    file = tmp_path / "oubliette.log"
    assert json.loads(file.read_text())["event"] == "container ready"
    assert file.stat().st_mode & 0o777 == 0o600


def test_no_secret_gets_through_in_any_place_or_spelling() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream, secrets=['planted-"quoted"-secret'])
    redactor.add("another-secret")
    logger = get_logger("x")
    logger.info('with planted-"quoted"-secret', nested={"a": ['planted-"quoted"-secret']}, raw=b"another-secret")
    logging.getLogger("third.party").error("sent Authorization: Bearer %s", "abcdefghijklmnopqrstuvwxyz")
    try:
        raise ValueError("another-secret in a message")
    except ValueError:
        logger.exception("failed", token="oub_" + "0" * 64)
    text = stream.getvalue()
    for secret in ("planted", "another-secret", "abcdefghijklmnop", "oub_0"):
        assert secret not in text
    assert text.count("***") >= 6
    assert len(lines(stream)) == 3


def test_what_people_and_agents_wrote_appears_at_debug_alone() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream, level="debug")
    logger = get_logger("x")
    logger.info("turn started", prompt="the user's words", output=b"bytes", text={"a": "b"})
    logger.debug("turn started", prompt="the user's words")
    quiet, loud = lines(stream)
    assert (quiet["prompt"], quiet["output"], quiet["text"]) == ("<16>", "<5>", "<dict>")
    assert loud["prompt"] == "the user's words"


def test_an_id_that_is_none_is_replaced() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)
    get_logger("x").info("call", request_id='a" b\n', session_id="gogol_20261122_081530_1a2b3c4d", turn_id=None)
    (line,) = lines(stream)
    assert line["request_id"] == "<not an id>"
    assert line["session_id"] == "gogol_20261122_081530_1a2b3c4d"
    assert line["turn_id"] is None


def test_text_for_people_cannot_move_their_terminal() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream, form="console")
    get_logger("x").warning("evil \x1b]0;title\x07 \u202e", path="a\nb\x9bc", n=3)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert "evil \\x1b]0;title\\x07 \\u202e" in text
    assert "n=3" in text
    assert "\x1b" not in text
    assert "\x9b" not in text


def test_libraries_speak_through_the_same_sink_and_only_when_it_matters() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)
    for name in ("hypercorn.error", "httpx", "mcp.server", "h2"):
        logging.getLogger(name).info("chatter")
        logging.getLogger(name).warning("trouble in %s", name)
    assert [line["event"] for line in lines(stream)] == [
        f"trouble in {name}" for name in ("hypercorn.error", "httpx", "mcp.server", "h2")
    ]


def test_files_are_rotated_and_the_oldest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (log.FILES, log.FILE_BYTES) == (10, 50 << 20)
    monkeypatch.setattr(log, "FILES", 3)
    monkeypatch.setattr(log, "FILE_BYTES", 2000)
    configure_logging(stream=io.StringIO(), directory=tmp_path)
    for number in range(100):
        get_logger("x").info("line", number=number)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["oubliette.log", "oubliette.log.1", "oubliette.log.2"]
    assert all(file.stat().st_size <= 2000 for file in files)
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert '"number": 99' in files[0].read_text()


def test_configuring_twice_does_not_say_everything_twice(tmp_path: Path) -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging(stream=first, directory=tmp_path)
    configure_logging(stream=second, directory=tmp_path)
    get_logger("x").info("once")
    assert first.getvalue() == ""
    assert len(lines(second)) == 1
    assert len((tmp_path / "oubliette.log").read_text().splitlines()) == 1
