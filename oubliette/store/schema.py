"""Opening the database: the checks made before a file is trusted, and the migrations that it still needs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import apsw

from oubliette.errors import StoreError
from oubliette.store.migrations import MIGRATIONS

APPLICATION_ID = 0x4F55424C
"""``OUBL`` in the file header: what tells our file from any other SQLite database."""

BUSY_TIMEOUT_MS = 5_000
"""Only backups and a CLI command on a stopped daemon's store ever compete with the writer."""

STATEMENT_CACHE = 400


def open_writer(path: Path, synchronous: str) -> apsw.Connection:
    """Open the file for writing, creating and migrating it. Blocks. Raises StoreError."""
    if synchronous not in {"FULL", "NORMAL", "OFF", "EXTRA"}:
        raise StoreError(f"open the store: synchronous={synchronous!r} is not one of FULL, NORMAL, OFF, EXTRA")
    _check_file(path)
    try:
        db = apsw.Connection(str(path), statementcachesize=STATEMENT_CACHE)
    except apsw.Error as error:
        raise StoreError(f"open the store {path}: {error}") from error
    try:
        db.set_busy_timeout(BUSY_TIMEOUT_MS)
        _check_header(db, path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {synchronous}")
        db.execute("PRAGMA journal_size_limit = 67108864")
        _migrate(db, path)
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA temp_store = MEMORY")
    except apsw.Error as error:
        db.close()
        hint = "restore a backup: oubliette backup restore"
        raise StoreError(f"open the store {path}: the file is damaged or unreadable: {error}", hint=hint) from error
    except BaseException:
        db.close()
        raise
    return db


def open_reader(path: Path) -> apsw.Connection:
    """Open one more connection that can only read. Blocks. Raises StoreError."""
    try:
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY, statementcachesize=STATEMENT_CACHE)
        db.set_busy_timeout(BUSY_TIMEOUT_MS)
        db.execute("PRAGMA query_only = ON")
        db.execute("PRAGMA temp_store = MEMORY")
    except apsw.Error as error:
        raise StoreError(f"open the store {path} for reading: {error}") from error
    return db


def _check_file(path: Path) -> None:
    """Create the file private to us, or refuse one that others may have written."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        return
    except FileExistsError:
        found = path.lstat()
    except OSError as error:
        raise StoreError(f"open the store {path}: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise StoreError(f"open the store {path}: it is not a regular file")
    if found.st_uid != os.geteuid():
        raise StoreError(
            f"open the store {path}: it belongs to uid {found.st_uid}, we are uid {os.geteuid()}",
            hint="run as its owner, or chown it to yourself",
        )
    if found.st_mode & 0o022:
        raise StoreError(f"open the store {path}: others may write it", hint=f"chmod 600 {path}")


def _check_header(db: apsw.Connection, path: Path) -> None:
    """Refuse another program's database and a newer one of ours. Our mark is set together with the first migration."""
    marked = db.pragma("application_id")
    version = db.pragma("user_version")
    empty = db.execute("SELECT count(*) FROM sqlite_schema").get == 0
    if marked != APPLICATION_ID and not empty:
        raise StoreError(f"open the store {path}: this is not a database of Oubliette")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"open the store {path}: its schema is {version}, this version knows {len(MIGRATIONS)}",
            hint="start the newer Oubliette that wrote it, or restore a backup made before the upgrade",
        )


def _migrate(db: apsw.Connection, path: Path) -> None:
    version = db.pragma("user_version")
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        try:
            db.execute("BEGIN IMMEDIATE")
            db.execute(script)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {number}")
            broken = db.execute("PRAGMA foreign_key_check").fetchall()
            if broken:
                raise StoreError(f"migrate the store {path} to {number}: {len(broken)} dangling references")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
