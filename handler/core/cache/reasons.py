"""Why a step has to be computed: what differs between the request and the newest record of history."""

from __future__ import annotations

import json

from pfl.handler.core.cache.bust import Mark
from pfl.handler.core.cache.entry import Entry
from pfl.handler.core.errors import CorruptRecordError
from pfl.handler.core.event import Request
from pfl.handler.core.fingerprint import Fingerprint, Part
from pfl.handler.core.fingerprint import changes as code
from pfl.handler.core.store import records
from pfl.handler.core.store.objects import Store

GONE = "its stored result is gone or damaged"


def explain(
    request: Request,
    step: str,
    inputs: dict[str, Entry],
    before: dict | None,
    store: Store,
    print: Fingerprint | None,
    *,
    busted: Mark | None = None,
    diff: bool = False,
) -> list[str]:
    """
    The reasons, a sentence each: ``never computed``, ``RATE in flows/helpers.py:12: 3 → 4``, ``parameter `rate`: 2 → 3``.

    Args:
        request: What was asked.
        step: The step.
        inputs: The results that it takes, as far as they are known.
        before: The body of its newest record of history, if there is one.
        store: Where the parts of older fingerprints are.
        print: The present fingerprint of the step.
        busted: The bust that made its stored result void, if one did.
        diff: Follow a sentence about changed source with a unified diff.
    """
    if step in request.bust:
        return ["busted by this call"]
    if busted is not None:  # All else is as it was, whatever was computed last.
        return [f"busted at {records.now_iso(busted.at)[:19]}Z"]
    if before is None:
        return ["never computed"]
    reasons = []
    if before["fingerprint"] != request.flow.steps[step].fingerprint:
        old = parts(store, step, before["fingerprint"])
        told = code.explain(old, print.parts, diff=diff) if old and print is not None else []
        reasons += told or ["its code changed"]
    for name, value in request.step_params(step).items():
        was = before.get("params", {}).get(name)
        if json.dumps(was) != json.dumps(value):
            reasons.append(f"parameter `{name}`: {_cut(was)} → {_cut(value)}")
    for name in request.flow.steps[step].upstream:
        was = before.get("inputs", {}).get(name, {})
        if name in inputs and was.get("sha256") != inputs[name].sha256:
            shown = (
                f": {_cut(was['value'])} → {_cut(inputs[name].value)}"
                if "value" in was
                else " changed"
            )
            reasons.append(f"input `{name}`{shown}")
    if not reasons and records.is_past(before.get("expires_at")):
        reasons.append(f"expired at {before['expires_at']}")
    return reasons or [GONE]


def parts(store: Store, step: str, fingerprint: str) -> list[Part]:
    """What an older fingerprint was made of; empty where nobody kept it."""
    path = records.code_path(step, fingerprint)
    try:
        data = store.get(path)
        return (
            [Part.from_json(row) for row in records.unseal(data, path)["parts"]]
            if data is not None
            else []
        )
    except (CorruptRecordError, KeyError, TypeError):
        return []


def _cut(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:39] + "…"
