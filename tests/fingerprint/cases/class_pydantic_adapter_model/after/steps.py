from pydantic import BaseModel, TypeAdapter


class Item(BaseModel):
    rate: int = 4


ITEMS = TypeAdapter(list[Item])


def step(x):
    return ITEMS.validate_python([{}])
