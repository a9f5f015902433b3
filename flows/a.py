"""Step a of the flow *meaning*."""

from pfl import step


@step
def a(id: str) -> int:
    """What is known about the ID."""
    return 1234 if id == "abc" else 420
