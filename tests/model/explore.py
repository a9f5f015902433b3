"""
Explores every interleaving of a few actors over one store, with crashes and pauses anywhere.

An actor is a generator: it yields requests and receives their answers. Its state is the list of the
answers it has received, so a state of the whole can be compared with others and entered again.

    ("get", name)               the content, or None
    ("create", name, content)   whether it was created: an object that exists is left alone
    ("put", name, content)      overwrites
    ("delete", name)
    ("list", prefix)            the names
    ("is_alive", actor)         whether its lease counts: not once it crashed or was taken for dead
    ("wait", name, content, actor)
                                answered once the content differs, or the actor is not alive
    ("note", …)                 not a request: what the invariants look at
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

Request = tuple[Any, ...]
Actor = Generator[Request, Any, None]
Actors = dict[str, Callable[[], Actor]]
Note = tuple[Any, ...]


class World(NamedTuple):
    """
    One state of the whole.

    Attributes:
        store: Names and contents of the objects, in order of name.
        answers: What each actor has received so far; None once it has ended or crashed.
        dead: Actors whose lease has expired. They crashed, or they are paused and may wake.
        crashed: Actors that take no further step.
        notes: What the actors noted, each with the actor's name first.
    """

    store: tuple[tuple[str, Any], ...]
    answers: tuple[tuple[Any, ...] | None, ...]
    dead: frozenset[str]
    crashed: frozenset[str]
    notes: tuple[Note, ...]


class InvariantError(Exception):
    """A state that must not be; the message lists the steps that lead to it."""


def explore(
    actors: Actors,
    find_fault: Callable[[World], str | None],
    *,
    crashes: int = 0,
    pauses: int = 0,
    may_fail: frozenset[str] = frozenset(),
    most_states: int = 3_000_000,
) -> int:
    """
    Walk through all states that can be reached.

    Args:
        actors: What each actor does, by name.
        find_fault: Returns what is wrong with a state, or None.
        crashes: How many actors may crash.
        pauses: How many actors may be taken for dead although they only pause.
        may_fail: The actors that may crash or pause.
        most_states: Give up beyond this number.

    Returns:
        The number of states.

    Raises:
        InvariantError: A state is wrong.
    """
    names = list(actors)
    first = World((), tuple(() for _ in names), frozenset(), frozenset(), ())
    came_from: dict[World, tuple[World | None, str]] = {first: (None, "")}
    todo = [first]
    while todo:
        world = todo.pop()
        for label, after in _moves(world, actors, crashes, pauses, may_fail):
            if after in came_from:
                continue
            came_from[after] = (world, label)
            if (fault := find_fault(after)) is not None:
                raise InvariantError("\n".join([fault, *_steps_to(after, came_from)]))
            if len(came_from) > most_states:
                raise MemoryError(f"more than {most_states} states")
            todo.append(after)
    return len(came_from)


def _steps_to(world: World, came_from: dict[World, tuple[World | None, str]]) -> list[str]:
    steps: list[str] = []
    at: World | None = world
    while at is not None:
        at, label = came_from[at]
        steps.append(f"  {label}")
    return steps[-2::-1]


def _moves(
    world: World, actors: Actors, crashes: int, pauses: int, may_fail: frozenset[str]
) -> Iterator[tuple[str, World]]:
    """Every next state, with the step that leads to it."""
    for index, (name, start) in enumerate(actors.items()):
        answers = world.answers[index]
        if answers is None:
            continue
        request = _next_request(start(), answers)
        if request is None:
            yield f"{name} ends", world._replace(answers=_at(world.answers, index, None))
            continue
        if (answered := _perform(name, request, world)) is not None:
            answer, after = answered
            after = after._replace(answers=_at(world.answers, index, (*answers, answer)))
            yield f"{name}: {request} → {answer}", after
        if name not in may_fail or not answers:
            continue
        if len(world.crashed) < crashes:
            yield (
                f"{name} crashes",
                world._replace(
                    answers=_at(world.answers, index, None),
                    crashed=world.crashed | {name},
                    dead=world.dead | {name},
                ),
            )
        if name not in world.dead and len(world.dead - world.crashed) < pauses:
            yield f"{name} pauses, and is taken for dead", world._replace(dead=world.dead | {name})


def _at(items: tuple[Any, ...], index: int, item: Any) -> tuple[Any, ...]:
    return (*items[:index], item, *items[index + 1 :])


def _next_request(actor: Actor, answers: tuple[Any, ...]) -> Request | None:
    """What the actor wants next. It runs from its start: a generator cannot be copied."""
    try:
        request = next(actor)
        for answer in answers:
            request = actor.send(answer)
    except StopIteration:
        return None
    return request


def _perform(name: str, request: Request, world: World) -> tuple[Any, World] | None:
    """Carry out one request, atomically, as a store does; None while it waits."""
    kind, *words = request
    store = dict(world.store)
    answer: Any = None
    if kind == "get":
        answer = store.get(words[0])
    elif kind == "create":
        answer = words[0] not in store
        if answer:
            store[words[0]] = words[1]
    elif kind == "put":
        store[words[0]] = words[1]
    elif kind == "delete":
        store.pop(words[0], None)
    elif kind == "list":
        answer = tuple(sorted(each for each in store if each.startswith(words[0])))
    elif kind == "is_alive":
        answer = words[0] not in world.dead
    elif kind == "wait":
        path, content, holder = words
        if store.get(path) == content and holder not in world.dead:
            return None
    elif kind == "note":
        world = world._replace(notes=(*world.notes, (name, *words)))
    else:
        raise ValueError(f"unknown request {request}")
    return answer, world._replace(store=tuple(sorted(store.items())))
