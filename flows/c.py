"""Step c of the flow *meaning*."""

from pfl import step


@step
def c(id: str, b: float) -> float:
    """Ten times the third."""
    return b * 10
