from typing import Optional

from pydantic import BaseModel


class Order(BaseModel):
    row: Optional["Row"] = None


class Row(BaseModel):
    price: int = 1


Order.model_rebuild()


def step(x):
    return Order(row={}).row.price
