from pydantic import BaseModel, TypeAdapter


class Item(BaseModel):
    rate: int = 3


ITEMS = TypeAdapter(list[Item])


def step(x):
    return ITEMS.validate_python([{}])
