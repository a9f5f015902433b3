"""An event in, a reply out: what Lambda hands us, checked, and what it gets back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import NamedTuple, NotRequired, TypedDict

from pfl.handler.core.declare.manifest import FlowEntry, Manifest
from pfl.handler.core.errors import ErrorBody, InvalidRequestError, PflError
from pfl.handler.core.store.keys import plan_key

ID_BYTES = 512
_FIELDS = ("id", "flow", "step", "bust", "skip", "params", "engine", "cached_only")

_ACTIONS: dict[str, dict[str, type]] = {
    "reap": {"action": str, "dry_run": bool}, "poll": {"action": str, "pool": str}, "check": {"action": str}, "run": {"flow_run_id": str},
}  # fmt: skip
_EXAMPLES = {
    "flow": '"flow": "meaning"', "step": '"step": "b"', "bust": '"bust": ["b"]', "skip": '"skip": ["a"]',
    "params": '"params": {"rate": 2}', "engine": '"engine": "direct"', "cached_only": '"cached_only": true',
}  # fmt: skip


Event = Mapping[
    str, object
]  # As it comes in: any field may be missing, unknown or of a wrong type.
Notify = Callable[[str, str], None]  # Called with a step, and what happens to it.


class StepRow(TypedDict):
    """What became of one step, as a reply reports it."""

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


class Reply(TypedDict):
    """What every caller gets, also when something went wrong; see ``docs/event.md``."""

    version: int
    id: object
    flow: object
    status: str
    steps: list[StepRow]
    engine: str | None
    error: NotRequired[ErrorBody]
    cold_start: NotRequired[bool]
    request_id: NotRequired[str]
    code: NotRequired[str]
    url: NotRequired[str | None]
    warnings: NotRequired[list[str]]
    store: NotRequired[dict[str, int]]
    ms: NotRequired[float]
    # Of an action:
    action: NotRequired[object]
    fingerprints: NotRequired[dict[str, dict[str, str]]]
    reaped: NotRequired[list[Mapping[str, object]]]
    runs: NotRequired[list[dict[str, object]]]
    # Of a flow run that Prefect scheduled:
    claimed: NotRequired[bool]
    why: NotRequired[str]
    flow_run_id: NotRequired[str]


class Request(NamedTuple):
    """An event whose every name has been found in the flow it asks for; *bases* as of :meth:`pfl.handler.core.declare.manifest.FlowEntry.bases`."""

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
        """The parameters that *step* takes, defaults filled in."""
        return {name: self.params[name] for name in self.flow.steps[step].params}

    def plan_key(self, step: str) -> str:
        """Where the plan of *step* is."""
        return plan_key(self.bases[step], self.id)

    def with_fingerprints(self, prints: Mapping[str, str]) -> Request:
        """The same request, as it would be if the named steps had these fingerprints."""
        steps = {
            n: s._replace(fingerprint=prints.get(n, s.fingerprint))
            for n, s in self.flow.steps.items()
        }
        flow = self.flow._replace(steps=steps)
        return self._replace(flow=flow, bases=flow.bases(self.params))


def parse(raw: object, manifest: Manifest, *, engine: str = "prefect") -> Request:
    """
    Check an event against the flows of the image.

    Args:
        raw: The event; text is read as JSON.
        manifest: The flows.
        engine: What computes a miss where the event does not say.

    Raises:
        InvalidRequestError: The event is wrong; the message names the field.
    """
    event = _object(raw)
    for name in event:
        if name not in _FIELDS:
            raise InvalidRequestError(
                f"unknown field {name!r} in the event", hint=f"the fields are {', '.join(_FIELDS)}"
            )
    id = check_id(event.get("id"))
    flow = _flow(event.get("flow"), manifest)
    if len(event) == 1:  # As most calls are: an ID, and nothing else to check.
        nothing: frozenset[str] = frozenset()
        return Request(
            id,
            flow,
            None,
            flow.sinks,
            nothing,
            nothing,
            flow.defaults,
            flow.default_bases,
            engine,
            False,
        )
    step = _typed(event, "step", str, None)
    if step is not None:
        _known(flow, step)
    targets = (step,) if step is not None else flow.sinks
    skip = _steps(flow, event, "skip", targets)
    bust = _bust(flow, event, step, targets)
    if both := sorted(bust & skip):
        raise InvalidRequestError(
            f"step {both[0]} is both busted and skipped", hint="leave one of the two out"
        )
    engine = _typed(event, "engine", str, engine)
    if engine not in ("prefect", "direct"):
        raise InvalidRequestError(f"unknown engine {engine!r}", hint='"prefect" or "direct"')
    cached_only = _typed(event, "cached_only", bool, False)
    params = _params(flow, event) if event.get("params") is not None else flow.defaults
    bases = flow.default_bases if params is flow.defaults else flow.bases(params)
    return Request(id, flow, step, targets, bust, skip, params, bases, engine, cached_only)


def fields_or_empty(raw: object) -> Mapping[str, object]:
    """The fields of an event that may be wrong, for a reply that says so."""
    try:
        return _object(raw)
    except InvalidRequestError:
        return {}


def check_id(id: object) -> str:
    """
    *id*, if it can be one: text of 1 to 512 bytes without control characters.

    Raises:
        InvalidRequestError: It cannot.
    """
    hint = f"an ID is text of 1 to {ID_BYTES} bytes without control characters"
    if id is None:
        raise InvalidRequestError(
            "the ID is missing", hint='"id": "abc" in an event, --id abc at a terminal'
        )
    if not isinstance(id, str):
        raise InvalidRequestError(f"the ID is {_kind(id)}, not text", hint=hint)
    if not id:
        raise InvalidRequestError("the ID is empty", hint=hint)
    try:
        size_bytes = len(id.encode())
    except UnicodeEncodeError as exc:
        raise InvalidRequestError("the ID is not valid Unicode", why=exc.reason, hint=hint) from exc
    if size_bytes > ID_BYTES:
        raise InvalidRequestError(
            "the ID is too long", why=f"{size_bytes} bytes, {ID_BYTES} at most", hint=hint
        )
    for position, character in enumerate("" if id.isprintable() else id):
        if (
            character < " " or "\x7f" <= character <= "\x9f"
        ):  # The category Cc of Unicode, which never grows.
            why = f"U+{ord(character):04X} at position {position}"
            raise InvalidRequestError("the ID has a control character", why=why, hint=hint)
    return id


def check_action(event: Mapping[str, object]) -> str:
    """
    What an event asks for that is no call for an ID: ``reap``, ``poll``, ``check``, or ``run`` for ``{"flow_run_id": "…"}``.

    Raises:
        InvalidRequestError: The event is wrong; the message names the field.
    """
    action = "run" if "flow_run_id" in event else event["action"]
    fields = _ACTIONS.get(action) if isinstance(action, str) else None
    if fields is None:
        raise InvalidRequestError(
            f"unknown action {action!r}",
            hint='{"action": "reap"}, {"action": "poll"} or {"action": "check"}',
        )
    for name, value in event.items():
        if name not in fields:
            raise InvalidRequestError(
                f"unknown field {name!r} in the event", hint=f"the fields are {', '.join(fields)}"
            )
        if type(value) is not fields[name] or value == "":
            wanted = "true or false" if fields[name] is bool else "text"
            raise InvalidRequestError(
                f"{name} is {_kind(value)}",
                why=f"it has to be {wanted}",
                hint=f"the fields are {', '.join(fields)}",
            )
    return action


def reply(*, id: object, flow: object, status: str) -> Reply:
    """A reply with the fields that each one has; the others are added as they become known."""
    return {"version": 1, "id": id, "flow": flow, "status": status, "steps": [], "engine": None}


def add_error(reply: Reply, error: PflError) -> None:
    """Make *reply* that of a call that failed."""
    reply["status"] = error.status
    reply["error"] = error.to_json()


def notify_nobody(step: str, doing: str) -> None:
    """Where nobody watches a call."""


def _object(raw: object) -> dict:
    if type(raw) is dict:  # As Lambda hands it over.
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


def _typed(event: dict, name: str, kind: type, default):
    value = event.get(name)
    if value is None:
        return default
    if type(value) is not kind:
        wanted = {str: "text", bool: "true or false", dict: "an object"}[kind]
        raise InvalidRequestError(
            f"{name} is {_kind(value)}", why=f"it has to be {wanted}", hint=_EXAMPLES[name]
        )
    return value


def _flow(name: object, manifest: Manifest) -> FlowEntry:
    if name is not None and not isinstance(name, str):
        raise InvalidRequestError(
            f"flow is {_kind(name)}", why="it has to be text", hint=_EXAMPLES["flow"]
        )
    flow = manifest.flows.get(manifest.default if name is None else name)
    if flow is None:
        raise InvalidRequestError(
            f"unknown flow {name!r}", hint=f"the flows are {', '.join(manifest.flows)}"
        )
    return flow


def _known(flow: FlowEntry, step: str) -> None:
    if step not in flow.steps:
        raise InvalidRequestError(
            f"unknown step {step!r} in flow {flow.name}",
            hint=f"its steps are {', '.join(flow.steps)}",
        )


def _bust(
    flow: FlowEntry, event: dict, step: str | None, targets: tuple[str, ...]
) -> frozenset[str]:
    if event.get("bust") == "this" and step is not None:
        return frozenset(targets)
    if event.get("bust") in ("this", "all"):  # Where no step is asked for, all of them are.
        return flow.closure(targets)
    return _steps(flow, event, "bust", targets, also='"this", "all" or ')


def _steps(
    flow: FlowEntry, event: dict, name: str, targets: tuple[str, ...], also: str = ""
) -> frozenset[str]:
    value = event.get(name)
    if value is None:
        return frozenset()
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        shown = repr(value) if isinstance(value, str) else _kind(value)
        raise InvalidRequestError(
            f"{name} is {shown}", why=f"it has to be {also}a list of steps", hint=_EXAMPLES[name]
        )
    needed = flow.closure(targets)
    for step in value:
        _known(flow, step)
        if step not in needed:
            asked = " and ".join(targets)
            raise InvalidRequestError(
                f"{name}: step {step} is not needed for {asked}", hint=f"leave {step} out"
            )
    return frozenset(value)


def _params(flow: FlowEntry, event: dict) -> dict[str, object]:
    given = _typed(event, "params", dict, {})
    for name in given:
        if name not in flow.params:
            known = (
                f"its parameters are {', '.join(flow.params)}"
                if flow.params
                else "it has no parameters"
            )
            raise InvalidRequestError(f"unknown parameter {name!r} of flow {flow.name}", hint=known)
    return {
        name: p.check(name, given[name]) if name in given else p.default
        for name, p in flow.params.items()
    }


def _kind(value: object) -> str:
    return {
        "dict": "an object", "list": "a list", "str": "text", "bool": "true or false", "NoneType": "null",
        "int": "a number", "float": "a number",
    }.get(type(value).__name__, type(value).__name__)  # fmt: skip
