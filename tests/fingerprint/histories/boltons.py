"""Calls of boltons."""

from boltons import cacheutils, dictutils, iterutils, setutils, statsutils, strutils, urlutils


def text():
    """Strings."""
    return (
        strutils.slugify("First post! Hi!!!!~1    "),
        strutils.camel2under("BasicParseTest"),
        strutils.bytes2human(10_000_000, ndigits=2),
        strutils.parse_int_list("1,3,5-8,10"),
        strutils.format_int_list([1, 2, 3, 7, 9]),
        strutils.cardinalize("party", 3),
        strutils.ordinalize(23),
        strutils.a10n("internationalization"),
        strutils.html2text("<p>Tags &amp; text<br>x</p>"),
        strutils.MultiReplace({"cat": "dog", "a": "an"}).sub("a cat"),
    )


def iterations():
    """Chunks, windows and nested data."""
    nested = {"a": [1, {"b": (2, 3)}], "c": {4}}
    return (
        iterutils.chunked(range(10), 4, fill=None),
        iterutils.windowed(range(5), 3),
        iterutils.split("a,b,,c".replace(",", " ")),
        iterutils.bucketize(range(6), key=lambda value: value % 2),
        iterutils.remap(nested, lambda path, key, value: value != 3),
        iterutils.get_path(nested, ("a", 1, "b", 0)),
        list(iterutils.backoff(1, 30, factor=3)),
        iterutils.unique([3, 1, 3, 2]),
        iterutils.flatten([1, [2, [3]]]),
    )


def dicts():
    """Dicts with several values, and caches."""
    many = dictutils.OMD([("a", 1), ("b", 2), ("a", 3)])
    cache = cacheutils.LRU(max_size=2)
    for key in "abcab":
        cache[key] = cache.get(key, 0) + 1
    one = dictutils.OneToOne({"x": 1, "y": 2})
    return (
        many.items(multi=True),
        many.inverted().todict(),
        sorted(cache.items()),
        (cache.hit_count, cache.miss_count),
        sorted(one.inv.items()),
        list(setutils.IndexedSet("hello world")),
        dictutils.subdict({"a": 1, "b": 2}, keep=["a"]),
    )


def urls():
    """URLs."""
    url = urlutils.URL("https://user:pw@Example.com:8080/a/../b%20c?x=1&x=2&y#frag")
    url.query_params["z"] = "ä"
    joined = url.navigate("../other?q=1")
    return url.to_text(), joined.to_text(full_quote=True), url.host, url.port, url.path_parts


def statistics():
    """Statistics."""
    stats = statsutils.Stats([1, 2, 2, 3, 10, 4.5])
    return (
        stats.mean,
        stats.median,
        stats.std_dev,
        stats.iqr,
        stats.get_histogram_counts(3),
        stats.format_histogram(bins=3, width=40),
    )
