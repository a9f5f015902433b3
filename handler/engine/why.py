"""Why a step has to be computed: what differs between the request and the newest record of history."""

from __future__ import annotations

import json

from handler.core import records
from handler.core.bust import Mark
from handler.core.cache import Entry
from handler.core.event import Request


GONE = "its stored result is gone or damaged"


def explain(request: Request, step: str, inputs: dict[str, Entry], before: dict | None, busted: Mark | None = None) -> str:
    """
    The reason, in a few words: ``never computed``, ``busted``, ``its code changed``, ``parameter `rate`: 2 → 3``.

    Args:
        request: What was asked.
        step: The step.
        inputs: The results that it takes.
        before: The body of its newest record of history, if there is one.
        busted: The bust that made its stored result void, if one did.
    """
    if step in request.bust:
        return "busted by this call"
    if before is None:
        return "never computed"
    reasons = []
    if before["fingerprint"] != request.flow.steps[step].fingerprint:
        reasons.append("its code changed")
    for name, value in request.step_params(step).items():
        old = before.get("params", {}).get(name)
        if json.dumps(old) != json.dumps(value):
            reasons.append(f"parameter `{name}`: {_cut(old)} → {_cut(value)}")
    for name in request.flow.steps[step].upstream:
        if name not in inputs:
            continue  # Not known yet.
        entry = inputs[name]
        if before.get("inputs", {}).get(name, {}).get("sha256") != entry.sha256:
            reasons.append(f"input `{name}` changed")
    if not reasons and records.is_past(before.get("expires_at")):
        reasons.append(f"expired at {before['expires_at']}")
    if not reasons and busted is not None:
        return f"busted at {records.now_iso(busted.at)[:19]}Z"
    return ", ".join(reasons) or GONE


def _cut(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:39] + "…"
