import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"
    id = sa.Column(sa.Integer, primary_key=True)

    def total(self):
        return 3


def step(x):
    return [each.class_().total() for each in Base.registry.mappers]
