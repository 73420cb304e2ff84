"""One failure out of a group of them."""

from __future__ import annotations

from oubliette.errors import ContainerExited, OublietteError


def first_of(group: BaseExceptionGroup[OublietteError]) -> OublietteError:
    """Of several failures at once, the one that says that the container is gone; else the first."""
    found = [first_of(error) if isinstance(error, BaseExceptionGroup) else error for error in group.exceptions]
    return next((error for error in found if isinstance(error, ContainerExited)), found[0])
