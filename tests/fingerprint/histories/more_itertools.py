"""Calls of more-itertools."""

import more_itertools as more


def windows():
    """Chunks and windows."""
    return (
        list(more.chunked(range(7), 3)),
        list(more.windowed([1, 2, 3, 4], 3, fillvalue=0, step=2)),
        [list(part) for part in more.divide(3, range(8))],
        list(more.stagger(range(4), longest=True)),
        list(more.sliced("abcdefg", 3)),
        list(more.batched("abcdefg", 3)),
        list(more.split_at("abcdcba", lambda letter: letter == "b")),
        list(more.split_before("OneTwo", str.isupper)),
        list(more.constrained_batches([b"123", b"4567", b"8"], 5)),
    )


def sequences():
    """Lookahead, buckets and search."""
    peek = more.peekable([1, 2, 3])
    bucket = more.bucket(["a1", "b1", "a2"], key=lambda text: text[0])
    return (
        (peek.peek(), peek[1], next(peek), list(peek)),
        (sorted(bucket), list(bucket["a"])),
        list(more.locate([0, 1, 1, 0])),
        list(more.replace([1, 2, 3, 1, 2], lambda *pair: pair == (1, 2), [9], window_size=2)),
        more.minmax([3, 1, 2]),
        more.one([5]),
        list(more.seekable([1, 2])),
        list(more.islice_extended(range(10), -4, -1)),
        list(more.interleave_longest([1, 2, 3], [4])),
        list(more.run_length.encode("aabccc")),
    )


def combinations():
    """Combinations and partitions."""
    return (
        sorted(more.distinct_permutations([1, 0, 1])),
        list(more.partitions("abc")),
        list(more.set_partitions("abc", 2)),
        list(more.powerset([1, 2, 3])),
        more.nth_product(3, "ab", "cd"),
        more.nth_combination(range(5), 3, 5),
        more.product_index("bd", "ab", "cd"),
        list(more.unique_to_each("ab", "bc")),
    )


def recipes():
    """Recipes and numbers."""
    return (
        list(more.sieve(30)),
        list(more.factor(360)),
        more.polynomial_from_roots([5, -4, 3]),
        list(more.convolve([1, 2, 3], [1, 1])),
        list(more.roundrobin("abc", "d")),
        list(more.triplewise("abcd")),
        list(more.grouper("abcd", 3, fillvalue="x")),
        list(more.numeric_range(1, 3, 0.5)),
        more.matmul([(7, 5), (3, 5)], [(2, 5), (7, 9)]).__class__.__name__,
    )
