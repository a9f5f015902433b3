from typing import TYPE_CHECKING
if TYPE_CHECKING:
    R = 1
else:
    R = 2
def step(x):
    return R
