"""The database's schema as numbered, forward-only migrations: one module each, in the order of this tuple.

``PRAGMA user_version`` is the number of migrations applied. A migration that has been released is never edited.
Conventions: times are INTEGER microseconds since 1970 UTC, JSON is TEXT, money is INTEGER micro-USD, booleans 0/1.
"""

from __future__ import annotations

from oubliette.store.migrations.house import HOUSE
from oubliette.store.migrations.schedules import SCHEDULES
from oubliette.store.migrations.tree import TREE
from oubliette.store.migrations.webhooks import WEBHOOKS

MIGRATIONS: tuple[str, ...] = (HOUSE, TREE, SCHEDULES, WEBHOOKS)
"""Applied in order, each in one transaction with its number."""
