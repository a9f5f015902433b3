"""Calls of TinyDB."""

from tinydb import Query, TinyDB, where
from tinydb.operations import add, delete, increment
from tinydb.storages import MemoryStorage

PEOPLE = [
    {"name": "Alice", "age": 30, "tags": ["x", "y"], "home": {"city": "X"}},
    {"name": "Bob", "age": 25, "tags": [], "home": {"city": "Y"}},
    {"name": "Carol", "age": 41, "tags": ["y"], "home": {"city": "X"}},
]


def _filled():
    database = TinyDB(storage=MemoryStorage)
    database.insert_multiple([dict(person) for person in PEOPLE])
    return database


def search():
    """Queries."""
    database, person = _filled(), Query()
    conditions = (
        person.age > 26,
        (person.home.city == "X") & (person.age < 40),
        person.name.matches("[AB].*") | ~(person.tags.any(["y"])),
        person.tags.all(["x", "y"]),
        where("name").test(lambda name: len(name) == 5),
        person.home.city.one_of(["Y"]),
        person.missing.exists(),
    )
    return [[found["name"] for found in database.search(each)] for each in conditions]


def update():
    """Changed, removed and new documents."""
    database, person = _filled(), Query()
    database.update(increment("age"), person.name == "Bob")
    database.update(add("age", 5), person.name == "Alice")
    database.update(delete("tags"), person.name == "Carol")
    database.update({"seen": True})
    database.remove(person.age > 41)
    database.upsert({"name": "Dan", "age": 1}, person.name == "Dan")
    return list(map(dict, database.all())), len(database)


def tables():
    """Several tables, and IDs."""
    database = _filled()
    table = database.table("other", cache_size=2)
    found = table.insert({"a": 1}), table.insert({"a": 2})
    first = table.get(doc_id=1)
    table.truncate()
    return found, first, sorted(database.tables()), table.all(), str(where("a").b == 1)
