"""
Flow *chat*: a conversation that goes on from run to run, one turn each.

``previous`` is no part of the cache key, so the same message again is the answer that is stored; ``--bust this`` takes one more turn.
"""

from pfl import step

REMEMBERED = 40  # Entries of the conversation that a turn takes along.


@step
def chat(id: str, previous: list | None, message: str = "Hello.") -> list:
    """
    The conversation with the ID so far: who said what, the newest last.

    Args:
        message: What is said now.
    """
    said = [*(previous or [])[-REMEMBERED:], {"by": "user", "text": message}]
    return [*said, {"by": "model", "text": model(said)}]


@step
def answer(chat: list) -> str:
    """What the model said last."""
    return chat[-1]["text"]


def model(said: list[dict]) -> str:
    """A stand-in for a language model: it knows nothing but the conversation, and is always of the same mind."""
    messages = [entry["text"] for entry in said if entry["by"] == "user"]
    name = next(
        (
            text.split("my name is", 1)[1].strip(" .!")
            for text in reversed(messages)
            if "my name is" in text
        ),
        None,
    )
    greeting = f"{name}, this" if name else "This"
    before = (
        f"before it you said {messages[-2]!r}" if len(messages) > 1 else "the first that I know of"
    )
    return f"{greeting} is your message {len(messages)}, {before}."
