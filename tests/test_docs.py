"""Documentation that can be checked by a machine."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from oubliette.cli.main import app
from oubliette.config.document import dotted
from oubliette.config.load import _LATER

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
_LINK = re.compile(r"\]\(([^)#:]+?)(#[^)]*)?\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_COMMAND = re.compile(r"^\$ oubliette (?:--dir \S+ )?([a-z]+)(?: ([a-z]+))?", re.MULTILINE)


def test_what_is_generated_is_fresh() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "docs", "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    dead = [link for link, _anchor in _LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_a_heading_find_it(page: Path) -> None:
    for link, anchor in _LINK.findall(page.read_text()):
        if anchor:
            headings = _HEADING.findall((page.parent / link).read_text())
            assert anchor[1:] in [re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings]


def test_the_index_leads_to_every_page() -> None:
    listed = {link for link, _anchor in _LINK.findall((ROOT / "docs" / "index.md").read_text())}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"} <= listed
    decisions = ROOT / "docs" / "decisions"
    listed = {link for link, _anchor in _LINK.findall((decisions / "README.md").read_text())}
    assert {page.name for page in decisions.glob("*.md")} - {"README.md"} == listed


def test_the_keys_that_are_not_built_are_listed() -> None:
    section = (ROOT / "docs" / "configuration.md").read_text().partition("## Not built yet")[2].partition("\n## ")[0]
    assert [key for key in map(dotted, _LATER) if f"`{key}`" not in section] == []


def test_each_dependency_has_its_line() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    rows = re.findall(r"^\| ([a-z][^|]*?)(?: \(Linux\))? \|", page.partition("## Reading JSON")[0], re.MULTILINE)
    named = {name for row in rows for name in row.split(", ")} - {"package"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert named == {re.split(r"[<>=;]", one)[0].strip() for one in project["dependencies"]}


def test_commands_in_the_documentation_exist() -> None:
    import typer

    groups = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for page in PAGES:
        for command, action in _COMMAND.findall(page.read_text()):
            assert command in groups, (page, command)
            inner = getattr(groups[command], "commands", None)
            assert inner is None or not action or action in inner, (page, command, action)
