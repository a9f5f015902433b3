from typing import Annotated, get_args

Score = Annotated[int, 'low', 3]

def step(x):
    return get_args(Score)
