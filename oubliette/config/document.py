"""The configuration file as text: JSON with comments and trailing commas, every value with its line.

json5 reads and judges the text but keeps no positions, so a small tokeniser walks the text that json5 has accepted
and notes where each key and element stands. It never has to find an error, which is what makes it small.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import json5

from oubliette.errors import ConfigError

Location = tuple[str | int, ...]
"""Where a value stands: keys and indexes from the root."""

MAX_FILE_BYTES = 1 << 20
MAX_INCLUDED_BYTES = 64 << 10

_TOKEN = re.compile(
    r"""//[^\n]* | /\*.*?\*/ | "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' | [{}\[\],:] | [^\s{}\[\],:"'/]+""",
    re.DOTALL | re.VERBOSE,
)
_PLACEHOLDER = re.compile(r"(?P<escaped>\$\$\{)|\$\{(?P<env>[^{}]*)\}|\{file:(?P<file>[^{}]+)\}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Expanded(str):
    """A string that came out of a placeholder: fields of other types may read their value from it."""

    __slots__ = ()


@dataclass(slots=True)
class Document:
    """A parsed file: the plain ``tree`` and the line of everything in it."""

    path: Path
    tree: dict[str, Any]
    lines: dict[Location, int] = field(default_factory=dict)

    def line(self, where: Location) -> int:
        """The line of ``where``, or of the nearest thing around it that stands in the file."""
        while where and where not in self.lines:
            where = where[:-1]
        return self.lines.get(where, 1)

    def error(self, where: Location, message: str, *, hint: str = "") -> ConfigError:
        """A ConfigError that points at ``where``."""
        return ConfigError(message, path=str(self.path), line=self.line(where), hint=hint)

    def moved(self, old: Location, new: Location) -> None:
        """Note that what stands at ``old`` in the file is at ``new`` in the tree, so that errors find it."""
        self.lines.setdefault(new, self.line(old))


def dotted(where: Location) -> str:
    """``a.b[2]``, as messages spell a place."""
    text = ""
    for part in where:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_document(path: Path) -> Document:
    """Read and parse. Raises ConfigError: not readable, not UTF-8, a syntax error, a key given twice, not an object."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError("there is no such file", path=str(path), hint="oubliette init writes one.") from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path=str(path)) from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"is larger than {MAX_FILE_BYTES} bytes", path=str(path))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError("is not UTF-8", path=str(path), line=line) from error
    return parse_document(text, path)


def parse_document(text: str, path: Path) -> Document:
    """Parse ``text``, which came from ``path``."""
    breaks = [match.start() for match in re.finditer("\n", text)]
    try:
        tree, problem, position = json5.parse(text)
    except RecursionError as error:
        raise ConfigError("is nested too deeply", path=str(path)) from error
    except ValueError as error:
        raise ConfigError("is empty", path=str(path), line=1, hint="The smallest configuration is {}.") from error
    if problem is not None:
        line = bisect_left(breaks, position) + 1
        column = position - (breaks[line - 2] if line > 1 else -1)
        found = "the end of the file" if position >= len(text) else json5.dumps(text[position])
        raise ConfigError(f"unexpected {found} at column {column}", path=str(path), line=line)
    if not isinstance(tree, dict):
        raise ConfigError("is not an object: it must begin with {", path=str(path), line=1)
    document = Document(path, tree)
    for where, offset in _places(text):
        line = bisect_left(breaks, offset) + 1
        if where in document.lines:
            first = document.lines[where]
            raise ConfigError(f'"{dotted(where)}" is given twice (first in line {first})', path=str(path), line=line)
        document.lines[where] = line
    return document


def _places(text: str) -> Iterator[tuple[Location, int]]:
    """Every key of an object and element of an array with its offset, in a text known to be valid."""
    where: list[str | int] = []
    open_brackets: list[str] = []
    awaits = "value"  # or "key", or "end": what follows a value
    for match in _TOKEN.finditer(text):
        lexeme = match.group()
        if lexeme.startswith(("//", "/*")) or lexeme == ":":
            continue
        if lexeme == ",":
            if open_brackets[-1] == "[":
                index = where.pop()
                where.append(index + 1 if isinstance(index, int) else index)
                awaits = "value"
            else:
                where.pop()
                awaits = "key"
        elif lexeme in {"}", "]"}:
            if open_brackets.pop() == "[" or awaits != "key":
                where.pop()
            awaits = "end"
        elif awaits == "key":
            where.append(_key(lexeme))
            yield tuple(where), match.start()
            awaits = "value"
        else:
            if where and open_brackets[-1] == "[":
                yield tuple(where), match.start()
            awaits = "end"
            if lexeme in {"{", "["}:
                open_brackets.append(lexeme)
                awaits = "key" if lexeme == "{" else "value"
                if lexeme == "[":
                    where.append(0)


def _key(lexeme: str) -> str:
    """The key that a lexeme of a valid text spells; quoted or bare."""
    if lexeme[0] in "\"'":
        return lexeme[1:-1] if "\\" not in lexeme else str(json5.loads(lexeme))
    return lexeme


def expand(document: Document, env: Mapping[str, str]) -> None:
    """Put ``${NAME}`` and ``{file:PATH}`` in every string in place, once: what comes out is not looked at again.

    ``$${`` stands for a plain ``${``. PATH is relative to the file's directory; one final newline is taken off.
    Raises ConfigError: a variable that is not set, a file that cannot be read.
    """

    def walk(value: Any, where: Location) -> Any:
        if isinstance(value, dict):
            return {key: walk(inner, (*where, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [walk(inner, (*where, index)) for index, inner in enumerate(value)]
        if not isinstance(value, str) or not _PLACEHOLDER.search(value):
            return value
        return Expanded(_PLACEHOLDER.sub(lambda match: _replacement(document, match, where, env), value))

    document.tree = walk(document.tree, ())


def _replacement(document: Document, match: re.Match[str], where: Location, env: Mapping[str, str]) -> str:
    if match["escaped"]:
        return "${"
    if match["file"] is None:
        name = match["env"]
        if not _ENV_NAME.fullmatch(name):
            raise document.error(where, f'"${{{name}}}" in {dotted(where)} is not the name of a variable')
        if name not in env:
            raise document.error(
                where,
                f"the environment variable {name}, used in {dotted(where)}, is not set",
                hint=f"Set {name} where the daemon is started, or write $${{ for a plain ${{.",
            )
        return env[name]
    file = document.path.parent / Path(match["file"]).expanduser()
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_INCLUDED_BYTES + 1)
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise document.error(where, f"{file}, used in {dotted(where)}, cannot be read: {reason}") from error
    if len(content) > MAX_INCLUDED_BYTES:
        raise document.error(where, f"{file}, used in {dotted(where)}, is larger than {MAX_INCLUDED_BYTES} bytes")
    return text.removesuffix("\n").removesuffix("\r")
