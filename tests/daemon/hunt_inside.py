"""Runs inside a container: where do these words stand? In files, environments, command lines and memory.

The words come backwards, so that the hunt does not find itself. Prints ``{"looked_at": {kind: number}, "found": {number
of the word: [places]}}``.
"""

from __future__ import annotations

import io
import json
import os
import stat
import sys

FILE_BYTES = 64 << 20
REGION_BYTES = 256 << 20
PIECE = 1 << 20
NEVER = ("/proc", "/sys", "/dev")

needles = [word[::-1].encode() for word in sys.argv[1:]]
longest = max(map(len, needles))
found: dict[str, list[str]] = {str(number): [] for number in range(len(needles))}
looked_at = {"files": 0, "environments": 0, "command lines": 0, "memories": 0}


def look(data: bytes, place: str) -> None:
    for number, needle in enumerate(needles):
        if needle in data and place not in found[str(number)]:
            found[str(number)].append(place)


def look_through(file: io.RawIOBase, size: int, place: str) -> None:
    """In pieces that overlap, so that a word on a border is seen."""
    tail = b""
    while size > 0:
        piece = file.read(min(PIECE, size))
        if not piece:
            return
        look(tail + piece, place)
        tail = piece[-longest:]
        size -= len(piece)


def files() -> None:
    for directory, names, entries in os.walk("/"):
        names[:] = [name for name in names if os.path.join(directory, name) not in NEVER]
        for name in entries:
            path = os.path.join(directory, name)
            try:
                look(os.fsencode(path), path)
                status = os.lstat(path)
                if stat.S_ISLNK(status.st_mode):
                    look(os.fsencode(os.readlink(path)), path)
                if stat.S_ISREG(status.st_mode) and not path.startswith("/usr/"):
                    with open(path, "rb", buffering=0) as file:
                        look_through(file, FILE_BYTES, path)
                    looked_at["files"] += 1
            except OSError:
                continue


def processes() -> None:
    for pid in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        name = "?"
        for kind, entry in (("command lines", "cmdline"), ("environments", "environ")):
            try:
                with open(f"/proc/{pid}/{entry}", "rb") as file:
                    data = file.read()
            except OSError:
                continue
            if kind == "command lines":
                name = os.fsdecode(data.replace(b"\0", b" "))[:60]
            look(data, f"{entry} of {name}")
            looked_at[kind] += 1
        if int(pid) != os.getpid():
            memory(pid, name)


def memory(pid: str, name: str) -> None:
    """Whoever has the same uid may read it."""
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
            regions = [line.split(None, 5) for line in maps if line.split()[1].startswith("rw")]
            for region in regions:
                start, end = (int(number, 16) for number in region[0].split("-"))
                try:
                    file.seek(start)
                    look_through(file, min(end - start, REGION_BYTES), f"memory of {name}")
                except (OSError, ValueError, OverflowError):
                    continue
            looked_at["memories"] += bool(regions)
    except OSError:
        return


look("\n".join(f"{key}={value}" for key, value in os.environ.items()).encode(errors="replace"), "environment")
files()
processes()
json.dump({"looked_at": looked_at, "found": found}, sys.stdout)
