"""The images that Oubliette builds itself, one per container type that ships with it. Standard library only, so that
scripts/images can use it before anything is installed.

Their names have no registry in them and none is asked for them: a name in a registry that is not ours could be taken by
anybody. What is missing is built from ``containers/<type>/Dockerfile``; only the image that its FROM names is pulled.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

DEFAULT_IMAGES = {"base": "oubliette-base:0.1"}
"""Container type to image. Raise the tag when the Dockerfile changes."""

SOURCE_LABEL = "dev.oubliette.source"
"""Label of an image built by us: ``context_digest`` of what it was built from."""

MAX_CONTEXT_BYTES = 512 << 20


def default_context(image: str) -> Path | None:
    """The directory whose Dockerfile makes this image, when it is one of ours."""
    for kind, name in DEFAULT_IMAGES.items():
        if name == image:
            here = Path(__file__).resolve().parents[1]
            for place in (here.parent / "containers" / kind, here / "containers" / kind):
                if (place / "Dockerfile").is_file():
                    return place
    return None


def context_tar(context: Path, into: io.BufferedIOBase) -> None:
    """Write ``context`` as a tar, the same bytes for the same content. Links are kept as links, never followed; what is
    neither file, directory nor link is left out. Raises ValueError when it is larger than MAX_CONTEXT_BYTES. Blocks."""
    total = 0
    with tarfile.open(fileobj=into, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(context.rglob("*")):
            entry = archive.gettarinfo(str(path), arcname=path.relative_to(context).as_posix())
            if not (entry.isfile() or entry.isdir() or entry.issym()):
                continue
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = ""
            entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            total += entry.size
            if total > MAX_CONTEXT_BYTES:
                raise ValueError(f"{context} holds more than {MAX_CONTEXT_BYTES >> 20} MiB")
            if entry.isfile():
                with path.open("rb") as content:
                    archive.addfile(entry, content)
            else:
                archive.addfile(entry)


def context_digest(context: Path) -> str:
    """SHA-256 of ``context_tar``: changes with the content alone. Blocks."""
    tar = io.BytesIO()
    context_tar(context, tar)
    return hashlib.sha256(tar.getvalue()).hexdigest()
