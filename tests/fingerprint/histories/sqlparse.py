"""Calls of sqlparse."""

import sqlparse
from sqlparse import sql

SELECT = (
    "select a.id, sum(b.price * 2) as total, case when x > 3 then 'y' else null end "
    "from tab a left join other b on a.id = b.id -- comment\n"
    "where a.name like 'foo%' and b.d between 1 and 2 or exists (select 1 from t) "
    "group by a.id having count(*) > 1 order by total desc limit 10;"
)
CREATE = (
    "create or replace table foo (id int primary key, name varchar(20) not null default 'x');"
    "insert into foo (id, name) values (1, 'a;b'), (2, 'c'); /* done */ update foo set id = 3;"
    "begin; declare x int; if x > 1 then delete from foo; end if; end; commit;"
)


def reindented():
    """Format with line breaks."""
    return sqlparse.format(SELECT, reindent=True, keyword_case="upper", strip_comments=True)


def aligned():
    """Format in columns."""
    return sqlparse.format(
        SELECT, reindent_aligned=True, identifier_case="lower", use_space_around_operators=True
    )


def split():
    """Separate statements."""
    return sqlparse.split(CREATE)


def tree():
    """Names of the groups and tokens of a statement."""
    found = []
    for statement in sqlparse.parse(CREATE + SELECT):
        found.append(statement.get_type())
        for token in statement.tokens:
            names = (
                (token.get_name(), token.get_alias()) if isinstance(token, sql.Identifier) else ()
            )
            found.append((type(token).__name__, str(token.ttype), token.value[:20], names))
    return found


def output():
    """Write Python code."""
    return sqlparse.format(SELECT, output_format="python", comma_first=True, reindent=True)
