"""Step b of the flow *meaning*."""

from handler import step


@step
def b(id: str, a: int) -> float:
    """A third of what is known."""
    return a / 3
