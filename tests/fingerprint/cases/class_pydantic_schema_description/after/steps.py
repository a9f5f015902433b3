from pydantic import BaseModel, Field


class Answer(BaseModel):
    rate: int = Field(description="a rate in percent")


def step(x):
    return Answer.model_json_schema()
