"""Why a step has to compute: what differs between the request and the newest record of history."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache

from ..errors import CorruptRecordError
from ..event import Request
from ..fingerprint import Fingerprint, Part, changes
from ..store import records
from ..store.objects import Store
from .bust import Mark
from .entry import Entry
from .history import ComputedRecord

NEVER = "never computed"
GONE = "its stored result is gone or damaged"
_SHOWN_CHARACTERS = 40


def explain(
    request: Request,
    step: str,
    inputs: Mapping[str, Entry],
    before: ComputedRecord | None,
    store: Store,
    print: Fingerprint | None,
    *,
    busted: Mark | None = None,
    diff: bool = False,
) -> list[str]:
    """
    The reasons, a phrase each, such as ``never computed`` or ``parameter `rate`: 2 → 3``.

    Args:
        request: The request.
        step: The step.
        inputs: The results that it takes, as far as they are known.
        before: Its newest record of history, if one exists.
        store: The store that holds the parts of older fingerprints.
        print: The current fingerprint of the step.
        busted: The bust that made its stored result invalid, if one did.
        diff: Add a unified diff to each phrase about changed source.
    """
    if step in request.bust:
        return ["busted by this call"]
    if busted is not None:
        return [f"busted at {records.now_iso(busted.at)[:19]}Z"]
    if before is None:
        return [NEVER]
    reasons = []
    if before["fingerprint"] != request.flow.steps[step].fingerprint:
        now = () if print is None else print.parts
        reasons += code_changes(store, step, before["fingerprint"], now, diff=diff)
    for name, value in request.step_params(step).items():
        old_value = before.get("params", {}).get(name)
        if json.dumps(old_value) != json.dumps(value):
            reasons.append(f"parameter `{name}`: {_cut(old_value)} → {_cut(value)}")
    for name in request.flow.steps[step].upstream:
        old_input = before.get("inputs", {}).get(name, {})
        if name not in inputs or old_input.get("sha256") == inputs[name].sha256:
            continue
        if "value" in old_input:
            reasons.append(
                f"input `{name}`: {_cut(old_input['value'])} → {_cut(inputs[name].value)}"
            )
        else:
            reasons.append(f"input `{name}` changed")
    if not reasons and records.is_past(before["expires_at"]):
        reasons.append(f"expired at {before['expires_at']}")
    return reasons or [GONE]


def code_changes(
    store: Store, step: str, fingerprint: str, now: Sequence[Part], *, diff: bool = False
) -> list[str]:
    """
    What has changed in the code of a step, a phrase for each part.

    Args:
        store: The store that holds the parts of older fingerprints.
        step: The step.
        fingerprint: The older fingerprint.
        now: The parts of the newer one; empty if they are unknown.
        diff: Add a unified diff to each phrase about changed source.
    """
    old = parts(store, step, fingerprint)
    known = changes.explain(old, now, diff=diff) if old and now else []
    return known or ["its code changed"]


@lru_cache(maxsize=256)
def parts(store: Store, step: str, fingerprint: str) -> tuple[Part, ...]:
    """The parts of an older fingerprint; empty if the store does not have them."""
    path = records.code_path(step, fingerprint)
    data = store.get(path)
    if data is None:
        return ()
    try:
        return tuple(Part.from_json(row) for row in records.unseal(data, path)["parts"])
    except (CorruptRecordError, KeyError, TypeError):
        return ()


def _cut(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
