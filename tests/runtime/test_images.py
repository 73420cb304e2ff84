from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from oubliette.runtime import default_images
from oubliette.runtime.default_images import DEFAULT_IMAGES, context_digest, context_tar, default_context
from oubliette.runtime.images import identity, split_reference


@pytest.mark.parametrize(
    ("reference", "halves"),
    [
        ("debian", ("debian", "latest")),
        ("debian:bookworm-slim", ("debian", "bookworm-slim")),
        ("ghcr.io/o/n", ("ghcr.io/o/n", "latest")),
        ("localhost:5000/n", ("localhost:5000/n", "latest")),
        ("localhost:5000/n:1", ("localhost:5000/n", "1")),
        ("n@sha256:ab", ("n", "sha256:ab")),
    ],
)
def test_a_reference_has_a_name_and_a_tag(reference: str, halves: tuple[str, str]) -> None:
    assert split_reference(reference) == halves


def test_an_image_of_a_registry_is_pinned_by_its_digest() -> None:
    known = {"Id": "sha256:1", "RepoDigests": ["other@sha256:2", "ghcr.io/o/n@sha256:3"]}
    assert identity("ghcr.io/o/n:1", known) == "ghcr.io/o/n@sha256:3"
    assert identity("mine:1", {"Id": "sha256:1", "RepoDigests": None}) == "sha256:1"


def test_an_image_built_here_is_pinned_by_its_id() -> None:
    name = DEFAULT_IMAGES["base"]
    known = {"Id": "sha256:1", "RepoDigests": [f"{name.partition(':')[0]}@sha256:2"]}
    assert identity(name, known) == "sha256:1"


def test_no_default_image_can_come_from_somebody_elses_registry() -> None:
    for name in DEFAULT_IMAGES.values():
        assert "/" not in name
        assert name.startswith("oubliette-")


def test_every_default_image_can_be_built_from_the_repository() -> None:
    for name in DEFAULT_IMAGES.values():
        context = default_context(name)
        assert context is not None
        assert (context / "Dockerfile").read_text()
    assert default_context("debian:bookworm-slim") is None


def context(place: Path) -> Path:
    (place / "below").mkdir(parents=True)
    (place / "Dockerfile").write_text("FROM x\n")
    (place / "below" / "run").write_text("#!/bin/sh\n")
    (place / "below" / "run").chmod(0o755)
    (place / "link").symlink_to("/etc/shadow")
    os.mkfifo(place / "pipe")
    return place


def test_the_same_content_gives_the_same_digest(tmp_path: Path) -> None:
    first, second = context(tmp_path / "first"), context(tmp_path / "second")
    os.utime(second / "Dockerfile", (1, 1))
    (second / "Dockerfile").chmod(0o600)
    assert context_digest(first) == context_digest(second)
    (second / "below" / "run").chmod(0o644)
    assert context_digest(first) != context_digest(second)


def test_links_are_packed_as_links_and_what_is_no_file_is_left_out(tmp_path: Path) -> None:
    into = io.BytesIO()
    context_tar(context(tmp_path / "c"), into)
    into.seek(0)
    with tarfile.open(fileobj=into) as archive:
        entries = {entry.name: entry for entry in archive}
    assert set(entries) == {"Dockerfile", "below", "below/run", "link"}
    assert entries["link"].issym()
    assert entries["link"].linkname == "/etc/shadow"
    assert entries["below/run"].mode == 0o755
    assert {(entry.uid, entry.gid, entry.mtime) for entry in entries.values()} == {(0, 0, 0)}


def test_a_context_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_images, "MAX_CONTEXT_BYTES", 10)
    with pytest.raises(ValueError, match="more than"):
        context_tar(context(tmp_path / "c"), io.BytesIO())
