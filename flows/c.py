"""Step c of the flow *meaning*."""

from pfl import step


@step
def c(id: str, b: float) -> float:
    """Ten times the result of step b."""
    return b * 10
