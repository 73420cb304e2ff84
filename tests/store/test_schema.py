from __future__ import annotations

import os
from pathlib import Path

import apsw
import pytest

from oubliette.errors import StoreError
from oubliette.store import meta, schema
from oubliette.store.database import open_store
from oubliette.store.migrations import MIGRATIONS


async def test_the_file_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "db"
    async with open_store(path, publish=lambda _: None) as store:
        await store.write(meta.instance_id)
        modes = {file: (tmp_path / file).stat().st_mode & 0o777 for file in os.listdir(tmp_path)}
    assert set(modes) == {"db", "db-wal", "db-shm"}
    assert set(modes.values()) == {0o600}


async def test_the_promised_pragmas_hold(tmp_path: Path) -> None:
    async with open_store(tmp_path / "db", publish=lambda _: None) as store:
        assert store._db.pragma("journal_mode") == "wal"
        assert store._db.pragma("synchronous") == 2
        assert store._db.pragma("foreign_keys") == 1
        assert store._db.pragma("user_version") == len(MIGRATIONS)
    async with open_store(tmp_path / "db", publish=lambda _: None, synchronous="NORMAL") as store:
        assert store._db.pragma("synchronous") == 1


async def test_an_unknown_synchronous_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="synchronous"):
        async with open_store(tmp_path / "db", publish=lambda _: None, synchronous="0; DROP TABLE x"):
            pass


async def test_migrations_go_forward_from_any_older_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "db"
    async with open_store(path, publish=lambda _: None) as store:
        instance = await store.write(meta.instance_id)
    newer = (*MIGRATIONS, "CREATE TABLE later (x TEXT) STRICT; INSERT INTO later VALUES ('a');")
    monkeypatch.setattr(schema, "MIGRATIONS", newer)
    async with open_store(path, publish=lambda _: None) as store:
        assert await store.read(meta.instance_id) == instance
        assert await store.read(lambda tx: tx.rows("SELECT x FROM later")) == [("a",)]
    async with open_store(path, publish=lambda _: None) as store:
        assert await store.read(lambda tx: tx.rows("SELECT x FROM later")) == [("a",)]


async def test_a_newer_database_refuses_to_open_and_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "db"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE later (x TEXT) STRICT;"))
        async with open_store(path, publish=lambda _: None):
            pass
    before = path.read_bytes()
    with pytest.raises(StoreError, match=f"schema is {len(MIGRATIONS) + 1}") as caught:
        async with open_store(path, publish=lambda _: None):
            pass
    assert "newer" in caught.value.hint
    assert path.read_bytes() == before


async def test_a_failing_migration_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "db"
    async with open_store(path, publish=lambda _: None):
        pass
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE a (x TEXT) STRICT; CREATE TABLE nonsense;"))
        with pytest.raises(StoreError):
            async with open_store(path, publish=lambda _: None):
                pass
    async with open_store(path, publish=lambda _: None) as store:
        tables = await store.read(lambda tx: tx.rows("SELECT name FROM sqlite_schema WHERE name = 'a'"))
        assert tables == []


async def test_a_migration_that_leaves_dangling_references_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = """INSERT INTO workspaces (workspace_id, project_id, "default", state, created_at)
             VALUES ('w', 'p', 0, 'x', 0);"""
    monkeypatch.setattr(schema, "MIGRATIONS", (*MIGRATIONS, bad))
    with pytest.raises(StoreError, match="dangling"):
        async with open_store(tmp_path / "db", publish=lambda _: None):
            pass


async def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "db"
    other = apsw.Connection(str(path))
    other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(StoreError, match="not a database of Oubliette"):
        async with open_store(path, publish=lambda _: None):
            pass


async def test_a_damaged_file_is_refused_with_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_bytes(b"this is no database at all, whatever its name may say" * 100)
    path.chmod(0o600)
    with pytest.raises(StoreError, match="damaged") as caught:
        async with open_store(path, publish=lambda _: None):
            pass
    assert "backup" in caught.value.hint


async def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.touch(mode=0o666)
    path.chmod(0o666)
    with pytest.raises(StoreError, match="others may write"):
        async with open_store(path, publish=lambda _: None):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
async def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.touch(mode=0o600)
    os.chown(path, 12345, 12345)
    with pytest.raises(StoreError, match="belongs to uid 12345"):
        async with open_store(path, publish=lambda _: None):
            pass


async def test_a_link_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch(mode=0o600)
    (tmp_path / "db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="regular"):
        async with open_store(tmp_path / "db", publish=lambda _: None):
            pass
