"""OpenAssistant's conversation trees (OpenAssistant/oasst1): pairs of sibling replies next to each other in rank.

Row (a message): message_id, parent_id, message_tree_id, text, role ("prompter" or "assistant"), lang, rank (0 is the
best; null where nobody ranked) and much that is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from dataloaders.datasets.conversation import Turn, TurnStrings, flaw, join_turns
from dataloaders.datasets.rows import field, load_rows
from dataloaders.examples import Dataset, Example, unusable

_ROLES = {"prompter": "user", "assistant": "assistant"}


class Message(NamedTuple):
    """One row."""

    identity: str
    parent: str | None
    turn: Turn
    language: str
    rank: int | None
    deleted: bool


def get_oasst(
    split: str,
    human_prefix: str,
    human_suffix: str,
    assistant_prefix: str,
    assistant_suffix: str,
    *,
    name: str = "oasst",
    hub: str = "OpenAssistant/oasst1",
    hub_test_split: str = "validation",
    language: str = "en",
    **source: Any,
) -> Dataset:
    """Every reply is preferred to the sibling one rank below it; scores are the negative ranks.

    The prompt is the path from the root to the parent, the SFT target the best-ranked reply. A row is a message: it is
    used when it is one of a pair or stands in the prompt of one. A tree falls as a whole on one side of a split.
    """
    strings = TurnStrings(human_prefix, human_suffix, assistant_prefix, assistant_suffix)
    dataset = Dataset(name)
    rows = load_rows(split, name=name, hub=hub, hub_split=hub_test_split if split == "test" else None, **source)
    messages = {message.identity: message for message in (_message(where, row) for where, row in rows)}
    losers = dict(_pairs(messages, language))
    needed: dict[str, str] = {}  # each message that is used -> a loser whose pair uses it
    for loser, winner in losers.items():
        for identity in (loser, winner, *_path(messages, loser)):
            needed.setdefault(identity, loser)
    for message in messages.values():
        path = _path(messages, message.identity)
        dataset.read(messages[path[0]].turn["content"] if path else message.turn["content"])
        if message.identity not in needed:
            dataset.drop(_why_unused(message, language), by_design=True)
        elif message.identity not in losers:
            dataset.example(_prompt(messages, needed[message.identity], strings))
        else:
            winner = messages[losers[message.identity]]
            prompt = _prompt(messages, message.identity, strings)
            example = dataset.add_pair(prompt, winner.turn["content"], message.turn["content"])
            if example is not None:
                _note_rank(example, winner)
                _note_rank(example, message)
    return dataset


def _message(where: str, row: dict[str, Any]) -> Message:
    role = field(row, "role", where)
    if role not in _ROLES:
        raise ValueError(f"{where}: field 'role' must be prompter or assistant, not {role!r}.")
    parent, rank = row.get("parent_id"), row.get("rank")  # left out, in some files, where they are null
    return Message(
        identity=field(row, "message_id", where),
        parent=None if parent is None else field(row, "parent_id", where),
        turn={"role": _ROLES[role], "content": field(row, "text", where).strip()},
        language=field(row, "lang", where),
        rank=None if rank is None else field(row, "rank", where, int),
        deleted=bool(row.get("deleted")),
    )


def _path(messages: dict[str, Message], identity: str) -> list[str]:
    """The messages from the root to the parent; [] for a root, and where one of them is not among the rows."""
    path: list[str] = []
    parent = messages[identity].parent
    while parent is not None:
        if parent not in messages or parent in path:
            return []
        path.insert(0, parent)
        parent = messages[parent].parent
    return path


def _prompt(messages: dict[str, Message], identity: str, strings: TurnStrings) -> str:
    """What the message of this identity replies to."""
    return join_turns([messages[one].turn for one in _path(messages, identity)], strings)


def _pairs(messages: dict[str, Message], language: str) -> Iterator[tuple[str, str]]:
    """(loser, winner) for siblings next to each other in rank."""
    replies: dict[tuple[str | None, int], Message] = {}
    for message in messages.values():
        fits = message.language == language and message.turn["role"] == "assistant" and not message.deleted
        if fits and message.rank is not None:
            replies.setdefault((message.parent, message.rank), message)
    for (parent, rank), message in replies.items():
        winner = replies.get((parent, rank - 1))
        turns = [messages[identity].turn for identity in _path(messages, message.identity)]
        texts = [message.turn["content"], winner.turn["content"]] if winner else []
        if winner and flaw(turns) is None and unusable("prompt", *texts) is None:
            yield message.identity, winner.identity


def _why_unused(message: Message, language: str) -> str:
    if message.language != language:
        return f"language is not {language}"
    if message.deleted:
        return "deleted message"
    if message.turn["role"] == "user":
        return "message without ranked replies"
    return "reply without a rank" if message.rank is None else "reply without a sibling next to it in rank"


def _note_rank(example: Example, message: Message) -> None:
    assert message.rank is not None
    index = example.add(message.turn["content"])
    known = example.scores[index]
    example.scores[index] = -float(message.rank) if known is None else max(known, -float(message.rank))
    best = example.scores[example.sft_index] if example.sft_index is not None else None
    if best is None or example.scores[index] > best:
        example.sft_index = index
