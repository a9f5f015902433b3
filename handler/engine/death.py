"""What a call died of, as Lambda tells its caller or its extension: what happened, and what to do about it."""

from __future__ import annotations

# Cause: what happened, and what to do about it.
ADVICE = {
    "timeout": ("ran into the function's time limit", "raise its timeout, or give the step less to do at once"),
    "memory": ("ran out of memory", "raise the function's memory, or keep less in it at once"),
    "exit": ("ended by itself, with os._exit or in a crash of native code", "look at the last lines of its log"),
    "import": ("could not import the flows", "build the image again with what they import; pfl plan shows the error here"),
    "killed": ("was killed", "if nobody did it by hand it ran out of memory, most likely: give it more"),
    "failure": (
        "died: it ended by itself, or was killed",
        "look at the last lines of its log; where they say signal: killed, give it more memory",
    ),
    "gone": (
        "ended without a word: by its time limit, out of memory, killed, or its sandbox is gone",
        "look at the last lines of its log; raise timeout or memory",
    ),
    "left": ("ended, but Prefect did not take the end of its run", "nothing, if its results are there: pfl cache ls"),
}


def of_shutdown(reason: str, *, killed_for_memory: bool) -> tuple[str, str]:
    """
    The cause, of :data:`ADVICE`, and words, from the reason of an extension's SHUTDOWN.

    Source: AWS Lambda Developer Guide, "Lambda Extensions API"; the emulator says ``ReleaseFail`` for ``failure``.
    """
    known = {"timeout": "timeout", "failure": "failure", "releasefail": "failure"}
    cause = "memory" if killed_for_memory else known.get(reason.lower(), "gone")
    return cause, f"Lambda shut its sandbox down: {reason.lower()}"
