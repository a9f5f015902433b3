from typing import Annotated, get_args

Score = Annotated[int, 'low', 4]

def step(x):
    return get_args(Score)
