"""Step a of the flow *meaning*."""

from pfl import step


@step
def a(id: str) -> int:
    """A number for the ID."""
    return 1234 if id == "abc" else 420
