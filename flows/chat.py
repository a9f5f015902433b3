"""
Flow *chat*: a conversation that continues from run to run, one turn each.

``previous`` is not part of the cache key: the same message again returns the stored answer, and
``--bust this`` takes one more turn.
"""

from typing import TypedDict

from pfl import step

REMEMBERED = 40  # The model sees this many earlier messages.


class Message(TypedDict):
    """One message of the conversation."""

    by: str
    text: str


@step
def chat(id: str, previous: list[Message] | None, message: str = "Hello.") -> list[Message]:
    """
    The conversation with the ID so far, newest message last.

    Args:
        message: The user's next message.
    """
    messages = (previous or [])[-REMEMBERED:]
    messages.append({"by": "user", "text": message})
    messages.append({"by": "model", "text": model(messages)})
    return messages


@step
def answer(chat: list[Message]) -> str:
    """The model's last message."""
    return chat[-1]["text"]


def model(messages: list[Message]) -> str:
    """A stand-in for a language model: it knows only the conversation, and is deterministic."""
    said = [message["text"] for message in messages if message["by"] == "user"]
    names = [text.split("my name is", 1)[1].strip(" .!") for text in said if "my name is" in text]
    greeting = f"{names[-1]}, this" if names else "This"
    before = "the first that I know of"
    if len(said) > 1:
        before = f"before it you said {said[-2]!r}"
    return f"{greeting} is your message {len(said)}, {before}."
