"""Tags in Prefect: only this module turns an ID, a step or a call into a tag."""

from __future__ import annotations

# What the tag of a limit may contain besides letters and digits: Prefect forbids / and %.
_PLAIN = "-_.@+"


def id_tag(id: str) -> str:
    """The tag of an ID's flow runs, ``id=abc``; no commas, since Prefect splits filters there."""
    return f"id={id.replace(',', '%2C')}"


def call_tag(token: str) -> str:
    """The tag of a call's flow run: ``call=…``."""
    return f"call={token}"


def run_tags(id: str, step: str | None, call: str) -> set[str]:
    """The tags of a flow run: ``id=abc``, ``step=b`` (or ``step=all``) and ``call=…``."""
    return {id_tag(id), f"step={step or 'all'}", call_tag(call)}


def limit_tag(id: str | None, step: str) -> str:
    """The tag that limits a step of one ID, ``id=abc:task-b``, or of all IDs, ``task-b``."""
    if id is None:
        return f"task-{step}"
    escaped = "".join(c if c.isalnum() or c in _PLAIN else f"~{ord(c):02X}" for c in id)
    return f"id={escaped}:task-{step}"


def is_id_limit(tag: str) -> bool:
    """Whether *tag* is one of :func:`limit_tag` for a single ID."""
    return tag.startswith("id=") and ":task-" in tag
