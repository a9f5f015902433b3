from pydantic import BaseModel, Field


class Order(BaseModel):
    price: int | None = Field(None, gt=1)


def step(x):
    return Order().price
