"""Calls of toolz."""

import toolz
from toolz import curried, dicttoolz, functoolz, itertoolz

PEOPLE = [
    {"name": "Alice", "age": 30, "city": "X"},
    {"name": "Bob", "age": 25, "city": "Y"},
    {"name": "Carol", "age": 30, "city": "X"},
]


def iterations():
    """Groups, windows and joins."""
    return (
        itertoolz.groupby("city", PEOPLE),
        list(itertoolz.sliding_window(2, range(5))),
        list(itertoolz.partition_all(3, range(7))),
        list(itertoolz.join("city", PEOPLE, 0, [("X", 1), ("Z", 2)], right_default=None)),
        itertoolz.reduceby("age", lambda total, item: total + 1, PEOPLE, 0),
        list(itertoolz.unique(["a", "b", "a"], key=str.upper)),
        list(itertoolz.merge_sorted([1, 4], [2, 3], key=lambda item: item)),
        list(itertoolz.topk(2, [5, 1, 7])),
        itertoolz.frequencies("hello"),
        list(itertoolz.interleave([[1, 2], [3]])),
    )


def dicts():
    """Merged and changed dicts."""
    nested = {"a": {"b": [1, 2]}, "c": 3}
    return (
        dicttoolz.update_in(nested, ["a", "b"], lambda value: [*value, 10]),
        dicttoolz.assoc_in(nested, ["x", "y"], 1),
        dicttoolz.merge_with(sum, {"a": 1}, {"a": 2, "b": 3}),
        dicttoolz.valfilter(bool, {"a": 0, "b": 1}),
        dicttoolz.dissoc(nested, "c"),
        dicttoolz.get_in(["c", "z"], nested, default="none"),
    )


def functions():
    """Composed, curried and cached functions."""

    @functoolz.curry
    def add(x, y, z=1):
        return x + y + z

    double = functoolz.compose(add(1), lambda x: x * 2)
    cached = functoolz.memoize(lambda x: x * 3)
    return (
        double(3),
        functoolz.pipe(3, add(1), str),
        functoolz.thread_first(1, (add, 4), str),
        functoolz.juxt(min, max)([1, 5, 2]),
        [cached(value) for value in (1, 1, 2)],
        functoolz.complement(bool)(0),
        functoolz.excepts(ValueError, int, lambda error: -1)("x"),
    )


def curry():
    """The curried module."""
    return toolz.pipe(
        PEOPLE,
        curried.pluck("age"),
        curried.filter(lambda age: age > 26),
        curried.map(lambda age: age + 1),
        list,
    )
