"""What a receiver's configuration may say, and that its secret is seen nowhere."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import pytest
import trio

from oubliette.cli.init import make_home
from oubliette.cli.main import run_command
from oubliette.config import check_config
from oubliette.core.notices import NOTICE_TYPES
from oubliette.home import Home
from oubliette.log import configure_logging
from oubliette.webhooks import endpoint as sending
from tests.webhooks.receiver import answers, open_receiver
from tests.webhooks.world import SECRET, config_of, open_hooked


def _problems(path: Path, receiver: str) -> list[str]:
    (path / "config").mkdir(exist_ok=True)
    file = path / "config" / "oubliette.jsonc"
    file.write_text('{"webhooks": {"ci": ' + receiver + "}}")
    _, problems, warnings = check_config(file, {})
    assert warnings == []
    return [str(one) for one in problems]


def test_a_receiver_with_its_url_and_secret_alone_is_complete(tmp_path: Path) -> None:
    assert _problems(tmp_path, f'{{"url": "https://ci.example.org/hook/", "secret": "{SECRET}"}}') == []


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('"url": "http://ci.example.org/"', 'must begin with "https://"'),
        ('"url": "https://user:pw@ci.example.org/"', "user name"),
        ('"url": "https://ci.example.org/#here"', "fragment"),
        ('"url": "https://ci.example.org:99999/"', "port"),
        ('"url": "https://ci.example.org/", "types": ["session.began"]', "session.turn_ended"),
        ('"url": "https://ci.example.org/", "projects": ["shop"]', "not the id of a project"),
        ('"url": "https://ci.example.org/", "project_ids": []', 'no key "project_ids"'),
    ],
)
def test_a_receiver_that_cannot_work_is_refused_in_words(tmp_path: Path, keys: str, said: str) -> None:
    (problem,) = _problems(tmp_path, f'{{{keys}, "secret": "{SECRET}"}}')
    assert said in problem


@pytest.mark.parametrize("secret", ["s", "whsec_", "whsec_c2hvcnQ=", "whsec_****", SECRET.removeprefix("whsec_")])
def test_a_bad_secret_is_refused_without_being_repeated(tmp_path: Path, secret: str) -> None:
    (problem,) = _problems(tmp_path, f'{{"url": "https://ci.example.org/", "secret": "{secret}"}}')
    assert "whsec_" in problem
    assert len(secret) < 6 or secret == "whsec_" or secret not in problem


async def test_the_secret_is_in_no_line_of_the_log_and_not_in_the_shown_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "DELAYS_SECONDS", (0.01,) * 3)
    stream = io.StringIO()
    before = logging.getLogger().handlers[:]
    configure_logging(level="debug", form="json", stream=stream)
    try:
        async with open_receiver(otherwise=answers(500)) as receiver:
            config = config_of(ci=f"{receiver.url}&key=in-the-address")
            async with open_hooked(tmp_path, config) as hooked:
                await hooked.tell(3)
                with trio.fail_after(10):
                    await hooked.until_counted(3, "given_up")
                logging.getLogger("test").warning("an error that quotes %s", SECRET.removeprefix("whsec_"))
    finally:
        logging.getLogger().handlers[:] = before
    said = stream.getvalue()
    assert "given up" in said
    assert SECRET.removeprefix("whsec_") not in said
    assert "in-the-address" not in said
    assert SECRET not in config.model_dump_json()
    assert SECRET not in repr(config)


def test_every_type_of_notice_has_its_words_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    for kind in NOTICE_TYPES:
        assert f"`{kind}`" in page


def test_config_show_does_not_show_the_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home(tmp_path / "home")
    make_home(home)
    home.config_file.write_text(
        '{"webhooks": {"ci": {"url": "https://ci.example.org/hook", "secret": "' + SECRET + '"}}}'
    )
    assert run_command(["--dir", str(home.root), "config", "show"]) == 0
    shown = capsys.readouterr()
    assert "https://ci.example.org/hook" in shown.out
    assert SECRET.removeprefix("whsec_") not in shown.out + shown.err


def test_the_configuration_that_the_documentation_shows_is_good(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    (block,) = re.findall(r"```jsonc\n(.*?)```", page, re.DOTALL)
    (tmp_path / "config").mkdir()
    file = tmp_path / "config" / "oubliette.jsonc"
    file.write_text("{" + block + "}")
    config, problems, warnings = check_config(file, {"OUBLIETTE_WEBHOOK_SECRET": SECRET})
    assert (problems, warnings) == ([], [])
    assert config is not None
    assert config.secrets() == {SECRET}
