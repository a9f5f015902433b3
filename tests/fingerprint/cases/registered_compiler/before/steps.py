import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import Delete


@compiles(Delete)
def delete(element, compiler, **options):
    return compiler.visit_delete(element, **options) + " /* a */"


def step(x):
    return str(sa.delete(sa.table("t")))
