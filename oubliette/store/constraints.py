"""Which rule of the schema a refused write broke."""

from __future__ import annotations

import apsw


def broke_foreign_key(error: apsw.ConstraintError) -> bool:
    """A row refers to one that is not there, or is still referred to."""
    return _extended(error) == apsw.SQLITE_CONSTRAINT_FOREIGNKEY


def broke_unique(error: apsw.ConstraintError, column: str) -> bool:
    """Another row has the same value in ``column`` (an index's columns are named in SQLite's message)."""
    return _extended(error) == apsw.SQLITE_CONSTRAINT_UNIQUE and f".{column}" in str(error)


def _extended(error: apsw.ConstraintError) -> int:
    # The attribute is set by apsw on every error of SQLite's and missing from its type stubs.
    code: int = getattr(error, "extendedresult", 0)
    return code
