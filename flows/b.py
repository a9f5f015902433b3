"""Step b of the flow *meaning*."""

from pfl import step


@step
def b(id: str, a: int) -> float:
    """A third of what is known."""
    return a / 3
