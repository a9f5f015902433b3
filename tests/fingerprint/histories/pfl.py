"""Calls of this project, whose repository is the package ``own`` here."""

from own.handler.core.errors import CorruptRecordError, InvalidRequestError
from own.handler.core.fingerprint import fingerprint

RATES = {"a": 1, "b": [2, 3]}


class _Box:
    size = 3

    def total(self, key=None):
        """The size and a rate."""
        return self.size, RATES.get(key)


def errors():
    """Errors with a reason and a hint."""
    error = CorruptRecordError("it is damaged", why="3 bytes", hint="bust it")
    return str(error), error.hint, error.exit_code, InvalidRequestError("no").exit_code


def parts():
    """The parts of a fingerprint."""
    return [(part.kind, part.name, part.text) for part in fingerprint(_Box.total).parts]
