"""What a question is: a text, or a list of chat messages that ends with the user's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ROLES = ("system", "user", "assistant")
TOOL = "tool"
"""The role of what a tool answered; it never stands in a task's question."""
Message = dict[str, str]
LONGEST_TEXT = 1_000_000  # characters of what an environment says
Question = str | list[Message]
"""Messages are {"role": one of ROLES, "content": text}; only the first may be the system's, the last is the user's."""


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def checked(question: Any) -> Question:
    """`question` itself. Raises ValueError, saying what is wrong, where it is not a Question."""
    if isinstance(question, str):
        return question
    if not isinstance(question, list) or not question:
        raise ValueError(f"a question is a text or a list of chat messages, not {type(question).__name__}")
    for number, said in enumerate(question):
        fields = said if isinstance(said, dict) else {}
        role, content = fields.get("role"), fields.get("content")
        if set(fields) != {"role", "content"} or role not in ROLES or not isinstance(content, str):
            raise ValueError(f"message {number} of a question is not {{role: {' | '.join(ROLES)}, content: text}}")
        if role == "system" and number:
            raise ValueError(f"message {number} of a question is the system's, which can only be the first")
    if question[-1]["role"] != "user":
        raise ValueError("the last message of a question must be the user's")
    return question


def results(texts: Sequence[str]) -> Question:
    """What tools answered to the calls of one message, in their order."""
    return [message(TOOL, text) for text in texts]


def are_results(heard: Question) -> bool:
    """Whether tools said it, and not the user."""
    return not isinstance(heard, str) and heard[-1]["role"] == TOOL


def listed(question: Question) -> list[Message]:
    """The messages of a question; a text is the user's."""
    return [message("user", question)] if isinstance(question, str) else question


def has_system(question: Question) -> bool:
    return not isinstance(question, str) and question[0]["role"] == "system"


def added(question: Question, text: str) -> Question:
    """The question with `text` after the user's last words."""
    if isinstance(question, str) or not text:
        return question + text if isinstance(question, str) else question
    return [*question[:-1], message("user", question[-1]["content"] + text)]


def preceded(question: Question, text: str) -> Question:
    """The question with `text` before the user's last words."""
    if isinstance(question, str) or not text:
        return text + question if isinstance(question, str) else question
    return [*question[:-1], message("user", text + question[-1]["content"])]


def asked(question: Question) -> str:
    """The user's last words; of tools, all that they answered."""
    if are_results(question):
        return "\n".join(said["content"] for said in listed(question))
    return question if isinstance(question, str) else question[-1]["content"]


def flat(pairs: Sequence[tuple[Question, str]], question: Question) -> list[Message]:
    """A dialogue of (question, answer) pairs, and the question that is open, as messages."""
    told = [said for asked, answer in pairs for said in (*listed(asked), message("assistant", answer))]
    return [*told, *listed(question)]
