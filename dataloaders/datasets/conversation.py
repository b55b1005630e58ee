"""Conversations as lists of turns, and the one place where turns are joined by the model's four strings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

Turn = dict[str, str]  # {"role": "user" | "assistant", "content": text}


class TurnStrings(NamedTuple):
    """What stands before and after the text of each turn; from the model's chat template or from the config."""

    human_prefix: str
    human_suffix: str
    assistant_prefix: str
    assistant_suffix: str


def join_turns(turns: Sequence[Turn], strings: TurnStrings) -> str:
    """The prompt made of these turns, ending with `assistant_prefix`: what the assistant's next reply follows."""
    return _joined(turns, strings) + strings.assistant_prefix


def continue_turns(turns: Sequence[Turn], strings: TurnStrings) -> str:
    """The generation made of these turns, which begin and end with the assistant's.

    It stands behind `assistant_prefix` and has no suffix at its end: both belong to the prompt and to tokenizing.
    """
    joined = _joined(turns, strings).removeprefix(strings.assistant_prefix)
    return joined[: len(joined) - len(strings.assistant_suffix)]


def _joined(turns: Sequence[Turn], strings: TurnStrings) -> str:
    around = {
        "user": (strings.human_prefix, strings.human_suffix),
        "assistant": (strings.assistant_prefix, strings.assistant_suffix),
    }
    return "".join(
        before + turn["content"].strip() + after for turn in turns for before, after in [around[turn["role"]]]
    )


def parse_turns(value: Any, where: str, name: str) -> tuple[str | None, list[Turn]]:
    """A list of messages ({"role", "content"}) as (system text or None, the other turns); contents are stripped.

    Raises ValueError, with `where` (file and line), for what is not a list of messages.
    """
    shown = f"{where}: `{name}` must be a list of messages such as"
    shown += ' [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
    if not isinstance(value, list) or not value:
        raise ValueError(f"{shown}, not {describe(value)}.")
    turns = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f"{shown}; message {number} has no text under `content`.")
        if message.get("role") not in ("system", "user", "assistant"):
            role = message.get("role")
            raise ValueError(f"{shown}; message {number} has the role {role!r}, not system, user or assistant.")
        turns.append({"role": message["role"], "content": message["content"].strip()})
    system = None
    if turns[0]["role"] == "system":
        system = turns.pop(0)["content"] or None
    if any(turn["role"] == "system" for turn in turns):
        raise ValueError(f"{where}: in `{name}` only the first message may have the role system.")
    return system, turns


def flaw(prompt_turns: Sequence[Turn]) -> str | None:
    """Why these turns cannot be the prompt of an assistant's reply, in a few plain words; None when they can."""
    if not prompt_turns:
        return "empty prompt"
    if prompt_turns[0]["role"] != "user":
        return "conversation does not begin with the user"
    if any(first["role"] == second["role"] for first, second in pairwise(prompt_turns)):
        return "turns do not alternate"
    if prompt_turns[-1]["role"] != "user":
        return "prompt does not end with the user"
    if not prompt_turns[-1]["content"]:
        return "empty prompt"
    return None


class Demonstration(NamedTuple):
    """A conversation taken apart: all that follows the first prompt is one generation, every assistant turn scored."""

    prompt: str
    generation: str
    system: str | None
    key: str  # what decides a split by prompt
    flaw: str | None  # why it cannot be used


def demonstration(system: str | None, turns: Sequence[Turn], strings: TurnStrings) -> Demonstration:
    """A whole conversation as the prompt up to the assistant's first turn, and the generation from there on."""
    first = next((index for index, turn in enumerate(turns) if turn["role"] == "assistant"), len(turns))
    reason = flaw(turns[:first])
    if reason is None and turns[-1]["role"] != "assistant":
        reason = "conversation does not end with the assistant"
    reason = reason or flaw(turns[:-1])
    if reason is None and not all(turn["content"] for turn in turns):
        reason = "empty turn"
    prompt, generation = (join_turns(turns[:first], strings), continue_turns(turns[first:], strings))
    return Demonstration(prompt, "" if reason else generation, system, split_key(turns[:first], system), reason)


def split_key(turns: Sequence[Turn], system: str | None = None) -> str:
    """The prompt free of the four strings: what decides on which side of a split by prompt a row falls."""
    return "\n\n".join([system or "", *(turn["content"] for turn in turns)]).strip()


def describe(value: Any) -> str:
    """A value as an error message shows it: its kind, and its beginning when it is short enough to help."""
    if value is None:
        return "null"
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 60 else shown[:60] + '...'}"
