"""
Explores every interleaving of a few actors over one store, with crashes and pauses anywhere.

An actor is a generator: it yields requests and receives their answers. Its state is a function, its
arguments, and the answers since, so a state of the whole can be compared with others and entered
again.

    ("get", name)               the content, or None
    ("create", name, content)   whether it was created, or exists with this content
    ("put", name, content)      overwrites
    ("delete", name, …)
    ("delete_unless", name, prefix, known)
                                deletes unless there are objects with this prefix that are not
                                known; whether it did. It stands for a list and a delete in a row.
    ("list", prefix)            the names
    ("is_alive", actor)         whether its lease counts: not once it crashed or was taken for dead
    ("is_gone", actor)          whether its process has certainly ended
    ("wait", name, content, actor)
                                answered once the content differs, or the actor is not alive
    ("wait_for_plan", name, content, actor)
                                the same, or once there is a plan
    ("choose", option, …)       any of the options

These take no time, they happen with the request before:

    ("note", …)                 what the invariants look at
    ("become", function, …)     the actor goes on with this function, and forgets its answers
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

Request = tuple[Any, ...]
Actor = Generator[Request, Any, Any]
Start = Callable[..., Actor]
Actors = Mapping[str, tuple[Any, ...]]
Check = Callable[["World"], str | None]
Store = Mapping[str, Any]

# An actor that runs alone and needs more requests than this does not end.
_MOST_REQUESTS = 200


class World(NamedTuple):
    """
    One state of the whole.

    Attributes:
        store: Names and contents of the objects, in order of name.
        at: Where each actor is: its function, arguments and answers; None once it has ended.
        dead: Actors whose lease has expired. They crashed, or they are paused and may wake.
        crashed: Actors that crashed.
        gone: Actors that take no further step: they crashed or ended.
        notes: What the invariants look at, see :mod:`tests.model.invariants`.
    """

    store: tuple[tuple[str, Any], ...]
    at: tuple[tuple[Any, ...] | None, ...]
    dead: frozenset[str]
    crashed: frozenset[str]
    gone: frozenset[str]
    notes: frozenset[tuple[Any, ...]]


class InvariantError(Exception):
    """A state that must not be; the message lists the steps that lead to it."""


def explore(
    actors: Actors,
    find_fault: Check,
    *,
    find_fault_at_end: Check = lambda world: None,
    store: Store | None = None,
    notes: frozenset[tuple[Any, ...]] = frozenset(),
    crashes: int = 0,
    pauses: int = 0,
    may_fail: frozenset[str] = frozenset(),
    dead: frozenset[str] = frozenset(),
    most_states: int = 3_000_000,
) -> int:
    """
    Walk through all states that can be reached.

    Args:
        actors: What each actor does, by name: a function and its arguments.
        find_fault: Returns what is wrong with a state, or None.
        find_fault_at_end: The same for a state in which nobody does anything more.
        store: The objects that are there.
        notes: The notes that are there.
        crashes: How many actors may crash.
        pauses: How many actors may be taken for dead although they only pause.
        may_fail: The actors that may crash or pause.
        dead: The actors that have been taken for dead.
        most_states: Give up beyond this number.

    Returns:
        The number of states.

    Raises:
        InvariantError: A state is wrong.
        MemoryError: There are more than *most_states*; these are well.
    """
    _next_request.cache_clear()  # What an actor does depends on which faults it has.
    names = list(actors)
    first = World(
        tuple(sorted((store or {}).items())),
        tuple((function, tuple(words), ()) for function, *words in actors.values()),
        dead,
        frozenset(),
        frozenset(),
        notes,
    )
    for index in range(len(names)):
        first = _go_on(first, index, names[index])
    # Only hashes are kept: 64 bits tell these few states apart.
    came_from: dict[int, int] = {hash(first): 0}
    todo = [first]
    limits = (crashes, pauses, may_fail)
    while todo:
        world = todo.pop()
        is_end = True
        for _, after in _moves(world, names, *limits):
            is_end = False
            key = hash(after)
            if key in came_from:
                continue
            came_from[key] = hash(world)
            if (fault := find_fault(after)) is not None:
                raise InvariantError(_explain(fault, first, after, came_from, names, limits))
            if len(came_from) > most_states:
                raise MemoryError(f"more than {most_states} states")
            todo.append(after)
        if is_end:
            waiting = [name for name, at in zip(names, world.at, strict=True) if at is not None]
            fault = f"{waiting} wait forever" if waiting else find_fault_at_end(world)
            if fault is not None:
                raise InvariantError(_explain(fault, first, world, came_from, names, limits))
    return len(came_from)


def behind_fences(store: Store) -> tuple[Any, ...] | None:
    """The plan that a hit would find, if there is one."""
    name = "plan"
    for _ in range(_MOST_REQUESTS):
        plan = store.get(name)
        if plan is None or plan[0] != "fence":
            return plan
        name = plan[1]
    return None


def run_alone(world: World, name: str, *start: Any) -> World | None:
    """The world after an actor ran from start to end, all others dead; None if it does not end."""
    function, *words = start
    at = (function, tuple(words), ())
    world = _go_on(world._replace(at=(at,)), 0, name)
    for _ in range(_MOST_REQUESTS):
        if world.at[0] is None:
            return world
        world = next(iter(_steps(world, 0, name)))[1]
    return None


def _explain(
    fault: str,
    first: World,
    last: World,
    came_from: dict[int, int],
    names: list[str],
    limits: tuple[int, int, frozenset[str]],
) -> str:
    path = [hash(last)]
    while path[-1] != hash(first):
        path.append(came_from[path[-1]])
    lines = [fault]
    world = first
    for key in path[-2::-1]:
        moves = _moves(world, names, *limits)
        label, world = next(move for move in moves if hash(move[1]) == key)
        lines.append(f"  {label}")
    return "\n".join(lines)


def _moves(
    world: World, names: list[str], crashes: int, pauses: int, may_fail: frozenset[str]
) -> Iterator[tuple[str, World]]:
    """Every next state, with the step that leads to it."""
    for index, name in enumerate(names):
        at = world.at[index]
        if at is None:
            continue
        yield from _steps(world, index, name)
        if name not in may_fail or not _is_named(world.store, name):
            continue
        if len(world.crashed) < crashes:
            gone = world._replace(
                at=_with(world.at, index, None),
                crashed=world.crashed | {name},
                gone=world.gone | {name},
                dead=world.dead | {name},
            )
            yield f"{name} crashes", gone
        if name not in world.dead and len(world.dead - world.crashed) < pauses:
            yield f"{name} pauses, and is taken for dead", world._replace(dead=world.dead | {name})


@lru_cache(maxsize=1 << 18)
def _is_named(store: tuple[tuple[str, Any], ...], name: str) -> bool:
    """Whether an object names the actor: one that has left no trace need not fail."""
    return any(name == content or name in content for _, content in store)


def _steps(world: World, index: int, name: str) -> Iterator[tuple[str, World]]:
    at = world.at[index]
    assert at is not None
    function, words, answers = at
    request = _next_request(function, words, answers)
    for answer, after in _perform(request, world):
        moved = after._replace(at=_with(world.at, index, (function, words, (*answers, answer))))
        yield f"{name}: {request} → {answer}", _go_on(moved, index, name)


def _go_on(world: World, index: int, name: str) -> World:
    """*world* after what takes no time: notes, the change of a function, the end."""
    while (at := world.at[index]) is not None:
        request = _next_request(*at)
        kind, *rest = request or ("end",)
        if kind == "end":
            world = world._replace(at=_with(world.at, index, None), gone=world.gone | {name})
        elif kind == "note":
            function, words, answers = at
            at = (function, words, (*answers, None))
            world = world._replace(
                at=_with(world.at, index, at), notes=_noted(world.notes, name, *rest)
            )
        elif kind == "become":
            function, *words = rest
            world = world._replace(at=_with(world.at, index, (function, tuple(words), ())))
        else:
            break
    return world


def _noted(
    notes: frozenset[tuple[Any, ...]], name: str, what: str, *words: Any
) -> frozenset[tuple[Any, ...]]:
    """
    *notes* and one more; the order in which the others came is forgotten.

    A call that begins is noted with the busts that have ended, a computation with those that have
    begun.
    """
    if what == "begins":
        words = (frozenset(note[1] for note in notes if note[0] == "bust ends"),)
    elif what == "computes":
        value, *seen = words
        begun = {note[1] for note in notes if note[0] == "bust begins"}
        return notes | {(what, value, frozenset(begun.union(*seen)))}
    elif what.startswith("bust"):
        name, *words = words or (name,)
    return notes | {(what, name, *words)}


def _with(items: tuple[Any, ...], index: int, item: Any) -> tuple[Any, ...]:
    return (*items[:index], item, *items[index + 1 :])


@lru_cache(maxsize=1 << 18)
def _next_request(
    function: Start, words: tuple[Any, ...], answers: tuple[Any, ...]
) -> Request | None:
    """What the actor wants next. It runs from its start: a generator cannot be copied."""
    actor = function(*words)
    try:
        request = next(actor)
        for answer in answers:
            request = actor.send(answer)
    except StopIteration:
        return None
    return request


def _perform(request: Request, world: World) -> Iterator[tuple[Any, World]]:
    """Carry out one request, atomically, as a store does; nothing while it waits."""
    kind, *words = request
    if kind == "choose":
        for option in words:
            yield option, world
        return
    store = dict(world.store)
    answer: Any = None
    is_changed = False
    if kind == "get":
        answer = store.get(words[0])
    elif kind == "create":
        # An object that exists with equal content counts as created: an answer may get lost.
        is_changed = words[0] not in store
        answer = store.setdefault(words[0], words[1]) == words[1]
    elif kind == "put":
        store[words[0]] = words[1]
        is_changed = True
    elif kind == "delete":
        is_changed = not store.keys().isdisjoint(words)
        for name in words:
            store.pop(name, None)
    elif kind == "delete_unless":
        name, prefix, known = words
        answer = all(each in known for each in store if each.startswith(prefix))
        is_changed = answer and store.pop(name, None) is not None
    elif kind == "list":
        answer = tuple(each for each in store if each.startswith(words[0]))
    elif kind == "is_alive":
        answer = words[0] not in world.dead and words[0] not in world.gone
    elif kind == "is_gone":
        answer = words[0] in world.gone
    elif kind in ("wait", "wait_for_plan"):
        path, content, holder = words
        is_alive = holder not in world.dead and holder not in world.gone
        is_same = store.get(path) == content
        if is_alive and is_same and (kind == "wait" or behind_fences(store) is None):
            return
    else:
        raise ValueError(f"unknown request {request}")
    if is_changed:
        world = world._replace(store=tuple(sorted(store.items())))
    yield answer, world
