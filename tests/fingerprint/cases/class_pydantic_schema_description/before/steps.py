from pydantic import BaseModel, Field


class Answer(BaseModel):
    rate: int = Field(description="the rate")


def step(x):
    return Answer.model_json_schema()
