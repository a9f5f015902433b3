"""Step c of the flow *meaning*."""

from handler import step


@step
def c(id: str, b: float) -> float:
    """Ten times the third."""
    return b * 10
