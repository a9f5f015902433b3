"""The shapes of events and replies, and the checks of an event."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, NotRequired, TypedDict

from .declare.manifest import FlowEntry, Manifest
from .errors import ErrorBody, InvalidRequestError, PflError, unknown, valid_unicode
from .settings import Settings
from .store import objects
from .store.keys import plan_key

ID_BYTES = 512
# What a call may contain, see ``docs/event.md``; a field that is None counts as absent.
_CALL: dict[str, type] = {
    "id": object,
    "flow": str,
    "step": str,
    "bust": object,
    "skip": object,
    "params": dict,
    "engine": str,
    "cached_only": bool,
}
_ACTIONS: dict[str, dict[str, type]] = {
    "reap": {"action": str, "dry_run": bool},
    "poll": {"action": str, "pool": str},
    "check": {"action": str},
    "run": {"flow_run_id": str},
}
_EXAMPLES: dict[type, str] = {dict: '{"rate": 2}', str: '"…"', bool: "true"}
_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}
_NO_STEPS: frozenset[str] = frozenset()

# An event before it is checked: any field may be missing, unknown or of a wrong type.
Event = Mapping[str, object]
# Called with a step, and what happens to it.
Notify = Callable[[str, str], None]


class StepRow(TypedDict):
    """One step in a reply."""

    step: str
    status: str
    value: object
    key: str | None
    why: str | None
    ms: float
    computed_at: str | None
    expires_at: str | None
    flow_run_id: str | None
    task_run_id: str | None
    url: str | None
    value_bytes: NotRequired[int]
    result: NotRequired[str]


class _Reply(TypedDict):
    version: int
    id: str | None
    flow: str | None
    status: str
    steps: list[StepRow]
    engine: str | None


class Reply(_Reply, total=False):
    """The reply to every event, including one that failed; see ``docs/event.md``."""

    error: ErrorBody
    cold_start: bool
    request_id: str
    code: str
    url: str | None
    warnings: list[str]
    store: dict[str, int]
    ms: float
    # The reply to an action:
    action: str | None
    fingerprints: dict[str, dict[str, str]]
    reaped: list[Mapping[str, object]]
    runs: list[dict[str, object]]
    # The reply to a flow run that Prefect scheduled:
    claimed: bool
    why: str
    flow_run_id: str


class Request(NamedTuple):
    """
    A checked event: every name in it exists in the flow.

    Attributes:
        step: The requested step; None: all.
        targets: The steps whose results the reply has to contain.
        bases: See :meth:`pfl.handler.core.declare.manifest.FlowEntry.bases`.
    """

    id: str
    flow: FlowEntry
    step: str | None
    targets: tuple[str, ...]
    bust: frozenset[str]
    skip: frozenset[str]
    params: dict[str, object]
    bases: dict[str, str]
    engine: str
    cached_only: bool

    def step_params(self, step: str) -> dict[str, object]:
        """The parameters that *step* takes, with defaults filled in."""
        return {name: self.params[name] for name in self.flow.steps[step].params}

    def plan_key(self, step: str) -> str:
        """The key of the plan of *step*."""
        return plan_key(self.bases[step], self.id)

    def with_fingerprints(self, fingerprints: Mapping[str, str]) -> Request:
        """The same request, with these fingerprints for the steps named in them."""
        steps = dict(self.flow.steps)
        for name in steps.keys() & fingerprints.keys():
            steps[name] = steps[name]._replace(fingerprint=fingerprints[name])
        flow = self.flow._replace(steps=steps)
        return self._replace(flow=flow, bases=flow.bases(self.params))


def notify_nobody(step: str, progress: str) -> None:
    """Ignore the progress of a call."""


class Caller(NamedTuple):
    """
    Who sent an event, and what its call may use.

    Attributes:
        settings: The settings.
        request_id: The ID of the call, chosen by the caller.
        deadline: When Lambda kills the process, as a ``time.monotonic()`` reading; None: never.
        notify: Called with a step and its progress, while a miss is computed.
        results: The store, if the caller has opened it already.
        is_cold: Whether this is the first call of the process.
    """

    settings: Settings
    request_id: str = ""
    deadline: float | None = None
    notify: Notify = notify_nobody
    results: objects.Store | None = None
    is_cold: bool = False

    @property
    def store(self) -> objects.Store:
        """The store."""
        return self.results or objects.shared(self.settings)


def parse(raw: object, manifest: Manifest, *, engine: str = "prefect") -> Request:
    """
    Check an event against the flows of the image.

    Args:
        raw: The event; text is read as JSON.
        manifest: The flows.
        engine: The engine that computes a miss, unless the event names one.

    Raises:
        InvalidRequestError: The event is invalid; the message names the field.
    """
    event = _object(raw)
    _check_fields(event, _CALL)
    given: dict[str, Any] = {name: value for name, value in event.items() if value is not None}
    id = check_id(given.get("id"))
    flow_name = given.get("flow", manifest.default)
    flow = manifest.flows.get(flow_name)
    if flow is None:
        raise unknown("flow", flow_name, manifest.flows)
    step = given.get("step")
    targets = flow.sinks
    if step is not None:
        _check_step(flow, step)
        targets = (step,)
    skip = _steps(flow, given, "skip", targets)
    bust = _steps(flow, given, "bust", targets)
    if both := sorted(bust & skip):
        raise InvalidRequestError(
            f"step {both[0]} is both busted and skipped", hint=f"remove {both[0]} from one of them"
        )
    engine = given.get("engine", engine)
    if engine not in ("prefect", "direct"):
        raise InvalidRequestError(f"unknown engine {engine!r}", hint='use "prefect" or "direct"')
    params, bases = flow.defaults, flow.default_bases
    if "params" in given:
        params = _params(flow, given["params"])
        bases = flow.bases(params)
    cached_only = given.get("cached_only", False)
    return Request(id, flow, step, targets, bust, skip, params, bases, engine, cached_only)


def fields_or_empty(raw: object) -> Event:
    """The fields of an event, valid or not, for the reply; empty if it has no fields."""
    try:
        return _object(raw)
    except InvalidRequestError:
        return {}


def check_id(id: object) -> str:
    """
    *id*, if it is valid: text of 1 to 512 bytes without control characters.

    Raises:
        InvalidRequestError: It is not.
    """
    if id is None:
        raise InvalidRequestError(
            "the ID is missing", hint='"id": "abc" in an event, --id abc at a terminal'
        )
    if not isinstance(id, str):
        raise _invalid_id(f"the ID is {_kind(id)}, not text")
    size_bytes = len(id.encode(errors="surrogatepass"))
    if not id:
        raise _invalid_id("the ID is empty")
    if size_bytes > ID_BYTES:
        raise _invalid_id(f"the ID has {size_bytes} bytes")
    # Unicode's category Cc, which never grows, and half characters.
    if not id.isprintable() and (found := re.search(r"[\0-\x1f\x7f-\x9f\ud800-\udfff]", id)):
        raise _invalid_id(f"the ID has U+{ord(found[0]):04X} at position {found.start()}")
    return id


_invalid_id = partial(
    InvalidRequestError,
    hint=f"an ID is UTF-8 text of 1 to {ID_BYTES} bytes without control characters",
)


def check_action(event: Event) -> str:
    """
    The action that an event asks for: ``reap``, ``poll``, ``check`` or ``run``.

    Args:
        event: The event; ``{"flow_run_id": "…"}`` asks for ``run``.

    Raises:
        InvalidRequestError: The event is invalid; the message names the field.
    """
    action = "run" if "flow_run_id" in event else event["action"]
    if not isinstance(action, str) or action not in _ACTIONS:
        hint = '{"action": "reap"}, {"action": "poll"} or {"action": "check"}'
        shown = repr(action) if isinstance(action, str) else _kind(action)
        raise InvalidRequestError(f"unknown action: {shown}", hint=hint)
    _check_fields(event, _ACTIONS[action])
    return action


def _check_fields(event: Event, kinds: Mapping[str, type]) -> None:
    for name, value in event.items():
        if name not in kinds:
            raise unknown("field", name, kinds, " in the event")
        if value is not None and not isinstance(value, kinds[name]):
            raise InvalidRequestError(
                f"{name} is {_kind(value)}",
                why=f"it has to be {_KINDS[kinds[name]]}",
                hint=f'"{name}": {_EXAMPLES[kinds[name]]}',
            )


def new_reply(id: object = None, flow: object = None) -> Reply:
    """A reply with the fields that every reply has; the others are added as they become known."""
    return {
        "version": 1,
        "id": text_or_none(id),
        "flow": text_or_none(flow),
        "status": "completed",
        "steps": [],
        "engine": None,
    }


def reply_to(raw: object, request_id: str, *, is_cold: bool) -> Reply:
    """A new reply to an event that may be invalid."""
    event = fields_or_empty(raw)
    reply = new_reply(event.get("id"), event.get("flow"))
    reply["cold_start"] = is_cold
    reply["request_id"] = request_id
    reply["code"] = ""
    return reply


@contextmanager
def answering(reply: Reply) -> Iterator[None]:
    """Put the duration of what is done into *reply*, and an error that pfl expects."""
    started = time.perf_counter()
    try:
        yield
    except PflError as exc:
        add_error(reply, exc)
    # A flow run that ran here has already measured its duration.
    reply.setdefault("ms", round((time.perf_counter() - started) * 1e3, 3))


def text_or_none(value: object) -> str | None:
    """A field of an unchecked event as a reply repeats it: valid Unicode, None if not text."""
    return valid_unicode(value) if isinstance(value, str) else None


def add_error(reply: Reply, error: PflError) -> None:
    """Turn *reply* into that of a call that failed."""
    reply["status"] = error.status
    reply["error"] = error.to_json()


def _object(raw: object) -> Event:
    # As Lambda passes it.
    if type(raw) is dict:
        return raw
    if isinstance(raw, str | bytes):
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError) as exc:
            raise InvalidRequestError(
                "the event is not JSON", why=str(exc), hint='{"id": "abc"}'
            ) from exc
    if not isinstance(raw, dict):
        raise InvalidRequestError(f"the event is {_kind(raw)}, not an object", hint='{"id": "abc"}')
    return raw


def _check_step(flow: FlowEntry, step: str) -> None:
    if step not in flow.steps:
        raise unknown("step", step, flow.steps, f" in flow {flow.name}")


def _steps(flow: FlowEntry, given: Event, name: str, targets: tuple[str, ...]) -> frozenset[str]:
    steps = given.get(name)
    if steps is None:
        return _NO_STEPS
    needed = flow.closure(targets)
    if name == "bust" and steps in ("this", "all"):
        # A call without a step asks for all of them.
        is_one = steps == "this" and "step" in given
        return frozenset(targets) if is_one else needed
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        shown = repr(steps) if isinstance(steps, str) else _kind(steps)
        raise InvalidRequestError(
            f"{name} is {shown}",
            why='it must be a list of steps; bust may also be "this" or "all"',
            hint=f'"{name}": ["b"]',
        )
    for step in steps:
        _check_step(flow, step)
        if step not in needed:
            raise InvalidRequestError(
                f"{name}: step {step} is not needed for {' and '.join(targets)}",
                hint=f"remove {step} from {name}",
            )
    return frozenset(steps)


def _params(flow: FlowEntry, given: Mapping[str, object]) -> dict[str, object]:
    for name in given:
        if name not in flow.params:
            raise unknown("parameter", name, flow.params, f" of flow {flow.name}")
    return flow.defaults | {
        name: flow.params[name].check(name, value) for name, value in given.items()
    }


def _kind(value: object) -> str:
    return _KINDS.get(type(value), type(value).__name__)
