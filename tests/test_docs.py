"""Documentation that can be checked by a machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from oubliette.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
_LINK = re.compile(r"\]\(([^)#:]+?)(#[^)]*)?\)")
_COMMAND = re.compile(r"^\$ oubliette (?:--dir \S+ )?([a-z]+)(?: ([a-z]+))?", re.MULTILINE)


def test_what_is_generated_is_fresh() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "docs", "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    dead = [link for link, _anchor in _LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert dead == []


def test_commands_in_the_documentation_exist() -> None:
    import typer

    groups = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for page in PAGES:
        for command, action in _COMMAND.findall(page.read_text()):
            assert command in groups, (page, command)
            inner = getattr(groups[command], "commands", None)
            assert inner is None or not action or action in inner, (page, command, action)
