"""Exit codes, and errors that end a command with one line."""

from __future__ import annotations

from oubliette.errors import OublietteError

OK, FAILED, USAGE, NOT_RUNNING, DENIED, STUCK, INTERRUPTED = 0, 1, 2, 3, 4, 70, 130


class CliError(OublietteError):
    """A command cannot go on; ``exit_code`` is what the process ends with."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = FAILED) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def exit_code_of(error: OublietteError) -> int:
    """The exit code for an error from anywhere."""
    if isinstance(error, CliError):
        return error.exit_code
    return DENIED if error.code in {"permission_denied", "unauthenticated"} else FAILED


def known_cause(error: BaseException) -> OublietteError | None:
    """The first error of ours in it: nurseries wrap what their tasks raise in groups."""
    if isinstance(error, OublietteError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((found for one in error.exceptions if (found := known_cause(one)) is not None), None)
    return None
