"""Step b of the flow *meaning*."""

from pfl import step


@step
def b(id: str, a: int) -> float:
    """A third of the result of step a: a parameter named like a step receives its result."""
    return a / 3
