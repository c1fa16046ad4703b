"""Errors a person can act on: what is wrong, where, and the mend."""

from __future__ import annotations

from pathlib import Path


class PureCCError(Exception):
    """Base of every error the project raises on purpose; the command line prints it without a traceback."""


class InvalidInput(PureCCError):
    """Input that a person has to mend.

    Args:
        problem: what is wrong, with the offending value.
        file: the file or folder it was found in, if any.
        field: the field of that file, if any.
        mend: what to do about it.
    """

    def __init__(
        self, problem: str, *, file: Path | str | None = None, field: str | None = None, mend: str | None = None
    ):
        self.problem, self.file, self.field, self.mend = problem, file, field, mend
        where = ": ".join(str(part) for part in (file, field) if part is not None)
        message = f"{where}: {problem}" if where else problem
        super().__init__(f"{message} ({mend})" if mend else message)


class IntegrityError(PureCCError):
    """Bytes that do not match their manifest."""


class TrainingDiverged(PureCCError):
    """A loss or a gradient became non-finite; the last good checkpoint was kept."""
