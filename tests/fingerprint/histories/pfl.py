"""Calls of this project, whose repository is the package ``own`` here."""

from own.handler.core.errors import CorruptRecordError, InvalidRequestError
from own.handler.core.fingerprint.normal import canonical, normalized

CODE = '''
"""Docstring."""
def f(x: int = 3, *rest, key=None) -> str:
    """Docstring."""
    pass
    return f"{x}" + g(rest)[0].name
'''


def errors():
    """Errors with a reason and a hint."""
    error = CorruptRecordError("it is damaged", why="3 bytes", hint="bust it")
    return str(error), error.hint, error.exit_code, InvalidRequestError("no").exit_code


def code():
    """Source without what changes nothing."""
    return canonical(normalized(CODE, ()))
