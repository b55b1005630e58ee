"""How a conversation becomes text: the four strings around its turns, taken from a model's own chat template.

Data sets join their turns with four strings that they are given. They are given markers, not the strings of the model,
so that what is a turn and what is only text that looks like one stays known to the end: history can be cut by whole
turns, and a `<|im_end|>` that somebody wrote in a message is never taken for the model's own token.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

# Private-use characters, which no keyboard writes.
MARKERS = ("\ue000human\ue001", "\ue000/human\ue001", "\ue000assistant\ue001", "\ue000/assistant\ue001")
_MARKER = re.compile("|".join(map(re.escape, MARKERS)))
_HALOS_STRINGS = ("\n<|user|>\n", "", "\n<|assistant|>\n", "")

Turn = tuple[str, str]  # role ("user" or "assistant") and content
Piece = tuple[str, bool]  # a text, and whether it is somebody's words (True) or the template's (False)


@dataclass(frozen=True)
class Conversation:
    """A text with markers, taken apart. `opening` stands before the first turn; `open`: the assistant is to go on."""

    opening: str
    turns: tuple[Turn, ...]
    open: bool

    @classmethod
    def parse(cls, text: str) -> Conversation:
        """Takes apart what a data set joined with MARKERS; a text without any is all `opening`."""
        opening, turns, role, position = "", [], None, 0
        for match in [*_MARKER.finditer(text), None]:
            content = text[position : match.start() if match else len(text)]
            if role is not None:
                turns.append((role, content))
            elif not turns:
                opening += content
            if match:
                role = {MARKERS[0]: "user", MARKERS[2]: "assistant"}.get(match.group())
                position = match.end()
        is_open = role == "assistant" and bool(turns) and turns[-1][1] == ""
        return cls(opening, tuple(turns[:-1] if is_open else turns), is_open)


@dataclass(frozen=True)
class ChatFormat:
    """The strings around turns. Where a template cannot be taken apart, `tokenizer` renders the prompt by it.

    Attributes:
        preamble: what comes once before the first turn (BOS, a default system turn).
        end_of_turn: what ends a response and is scored: `assistant_suffix` up to its first special token, or EOS.
        system_prefix, system_suffix: around a system turn of the example's own, which takes the preamble's place; the
            suffix reaches to the words of the first user turn.
        lead: white space that a template puts before a response and not at the end of its generation prompt (Llama 2).
        strips: whether the template strips the contents of turns.
    """

    human_prefix: str
    human_suffix: str
    assistant_prefix: str
    assistant_suffix: str
    preamble: str
    end_of_turn: str
    system_prefix: str | None = None
    system_suffix: str | None = None
    lead: str = ""
    strips: bool = False
    tokenizer: PreTrainedTokenizerBase | None = None

    def prompt(self, turns: tuple[Turn, ...], system: str | None, opening: str = "") -> list[Piece]:
        """The pieces of a prompt: everything up to where the assistant answers."""
        if self.tokenizer is not None:
            return _split_rendered(self._by_template(turns, system, generate=True), turns, system)
        pieces: list[Piece] = [(opening, True)] if opening else []
        if system is not None and self.system_prefix is not None:
            suffix = self.system_suffix or ""
            if turns and turns[0][0] == "user":
                pieces += [(self.system_prefix, False), (self.said(system), True), (suffix, False)]
                pieces += [(self.said(turns[0][1]), True), (self.human_suffix, False)]
                turns = turns[1:]
            else:
                suffix = suffix.removesuffix(self.human_prefix)
                pieces += [(self.system_prefix, False), (self.said(system), True), (suffix, False)]
        else:
            pieces += [(self.preamble, False)]
            turns = _with_system(turns, system)
        for role, content in turns:
            prefix, suffix = self._around(role)
            pieces += [(prefix, False), (self.said(content), True), (suffix, False)]
        return [*pieces, (self.assistant_prefix, False)]

    def said(self, content: str) -> str:
        """The content of a turn as the template lets it stand."""
        return content.strip() if self.strips else content

    def _around(self, role: str) -> tuple[str, str]:
        if role == "user":
            return self.human_prefix, self.human_suffix
        return self.assistant_prefix + self.lead, self.assistant_suffix

    @property
    def after_end_of_turn(self) -> str:
        """What stands between the scored end of a response and the next turn."""
        suffix = self.assistant_suffix
        return suffix.removeprefix(self.end_of_turn) if suffix.startswith(self.end_of_turn) else ""

    def later_turns(self, turns: tuple[Turn, ...]) -> list[list[Piece]]:
        """The pieces between one response and the next of a demonstration: one list for each later response.

        Args:
            turns: the turns after the first response: user, assistant, user, assistant ...
        """
        if self.tokenizer is not None:
            raise ValueError(
                "this model's chat template cannot be taken apart into four strings, so only one response of a "
                "conversation can be scored. Set model.human_prefix, human_suffix, assistant_prefix and "
                "assistant_suffix, or give conversations with one response."
            )
        between, lists = [(self.after_end_of_turn, False)], []
        for role, content in turns:
            if role == "assistant":
                lists.append([*between, (self.assistant_prefix, False)])
                between = [(self.after_end_of_turn, False)]
            else:
                between += [(self.human_prefix, False), (self.said(content), True), (self.human_suffix, False)]
        return lists

    def _by_template(self, turns: tuple[Turn, ...], system: str | None, generate: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        if system is None:
            return _render(self.tokenizer, messages, generate)
        try:
            return _render(self.tokenizer, [{"role": "system", "content": system}, *messages], generate)
        except Exception:  # a template is somebody else's program: this one knows no system turn
            messages = [{"role": role, "content": content} for role, content in _with_system(turns, system)]
            return _render(self.tokenizer, messages, generate)


def _with_system(turns: tuple[Turn, ...], system: str | None) -> tuple[Turn, ...]:
    """For a template without system turns: the system's words open the first user turn."""
    if not system:
        return turns
    if not turns or turns[0][0] != "user":
        return (("user", system), *turns)
    return (("user", f"{system}\n\n{turns[0][1]}"), *turns[1:])


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], generate: bool) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
    except Exception as error:  # a template is a program of somebody else's
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"the model's chat template fails on the turns {roles} ({type(error).__name__}: {error}). Set "
            "model.human_prefix, human_suffix, assistant_prefix and assistant_suffix in its place."
        ) from error


def _split_rendered(text: str, turns: tuple[Turn, ...], system: str | None) -> list[Piece]:
    """Marks, in a rendered prompt, what somebody wrote: as it was, stripped, or without its thinking."""
    pieces, position = [], 0
    for content in ([system] if system else []) + [content for _, content in turns]:
        for shown in (content, content.strip(), content.rpartition("</think>")[2].strip()):
            start = text.find(shown, position) if shown else -1
            if start >= 0:
                pieces += [(text[position:start], False), (shown, True)]
                position = start + len(shown)
                break
    return [*pieces, (text[position:], False)]


def chat_format(
    tokenizer: PreTrainedTokenizerBase,
    human_prefix: str | None = None,
    human_suffix: str | None = None,
    assistant_prefix: str | None = None,
    assistant_suffix: str | None = None,
) -> ChatFormat:
    """The format of a model: the config's four strings, else its chat template's, else those of HALOs.

    Args:
        human_prefix, human_suffix, assistant_prefix, assistant_suffix: all null, or all given.

    Raises:
        ValueError: when only some of the four strings are given.
    """
    strings = (human_prefix, human_suffix, assistant_prefix, assistant_suffix)
    if any(string is not None for string in strings) and any(string is None for string in strings):
        raise ValueError(
            "set all four of model.human_prefix, human_suffix, assistant_prefix and assistant_suffix, or none of them "
            "(an empty suffix is written '')."
        )
    if strings[0] is not None or not tokenizer.chat_template:
        chosen = strings if strings[0] is not None else _HALOS_STRINGS
        return ChatFormat(*chosen, preamble=bos(tokenizer), end_of_turn=_end_of_turn(tokenizer, chosen[3]))
    parts = _take_apart(tokenizer)
    if parts is None:
        log.info("this model's chat template cannot be taken apart into four strings: it renders each prompt itself")
        lead, suffix = _around_response(tokenizer)
        return ChatFormat("", "", "", suffix, "", _end_of_turn(tokenizer, suffix), lead=lead, tokenizer=tokenizer)
    return parts


def bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """BOS where the tokenizer would put one by itself; it is added here, once, and nowhere else."""
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else ""


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, assistant_suffix: str) -> str:
    special = sorted(set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab()), key=len, reverse=True)
    match = re.search("|".join(map(re.escape, special)), assistant_suffix) if assistant_suffix else None
    return assistant_suffix[: match.end()] if match else assistant_suffix + tokenizer.eos_token


def _around_response(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The white space before and the text after a response, as a template that cannot be taken apart puts them."""
    question, probe = {"role": "user", "content": "A?"}, "7391 is prime"
    text = _render(tokenizer, [question, {"role": "assistant", "content": probe}], False)
    if probe not in text:
        raise ValueError(
            "the model's chat template does not show what the assistant says. Set model.human_prefix, human_suffix, "
            "assistant_prefix and assistant_suffix in its place."
        )
    start = text.rindex(probe)
    lead = text[:start].removeprefix(_render(tokenizer, [question], True))
    return lead if lead.isspace() else "", text[start + len(probe) :]


def _take_apart(tokenizer: PreTrainedTokenizerBase) -> ChatFormat | None:
    """The template's strings by rendering one conversation, checked by rendering others; None where they do not fit."""
    one, two, three = "one 7391?", "two 2857.", "three 6143?"
    user, reply, last = ({"role": r, "content": c} for r, c in (("user", one), ("assistant", two), ("user", three)))
    try:
        whole = _render(tokenizer, [user, reply, last], True)
        before, rest = whole.split(one)
        middle, rest = rest.split(two)
        between, after = rest.split(three)
        human_suffix = _render(tokenizer, [user], False).split(one)[1]
        assistant_suffix = _render(tokenizer, [user, reply], False).split(two)[1]
    except Exception:  # a template is a program of somebody else's: whatever it raises, it cannot be taken apart
        return None
    human_prefix = between.removeprefix(assistant_suffix)
    assistant_prefix, lead = after.removeprefix(human_suffix), middle.removeprefix(after)
    if not middle.startswith(after) or lead.strip() or not after.startswith(human_suffix):
        return None
    if not before.endswith(human_prefix) or not between.startswith(assistant_suffix):
        return None
    preamble = before[: len(before) - len(human_prefix)]
    system_prefix, system_suffix = _system_strings(tokenizer)
    format = ChatFormat(
        human_prefix, human_suffix, assistant_prefix, assistant_suffix, preamble,
        _end_of_turn(tokenizer, assistant_suffix), system_prefix, system_suffix, lead,
    )  # fmt: skip
    if not _renders_alike(format, tokenizer, "{}"):
        return None
    stripping = dataclasses.replace(format, strips=True)
    strips = not _renders_alike(format, tokenizer, " {}\n") and _renders_alike(stripping, tokenizer, " {}\n")
    return stripping if strips else format


def _system_strings(tokenizer: PreTrainedTokenizerBase) -> tuple[str | None, str | None]:
    system, user = "system 9973.", "user 8117?"
    try:
        text = _render(tokenizer, [{"role": "system", "content": system}, {"role": "user", "content": user}], False)
        before, rest = text.split(system)
        return before, rest[: rest.index(user)]
    except Exception:  # as above: no system turn in this template
        return None, None


def _renders_alike(format: ChatFormat, tokenizer: PreTrainedTokenizerBase, around: str) -> bool:
    """Whether joining the strings gives what the template gives, on conversations that were not taken apart.

    `around` is the white space about each content. Each conversation is compared up to where the assistant answers and,
    where an answer follows, with the answer; a template that shows or hides thinking differs in one of them.
    """
    contents = ("Why?", "Because.\n\nSo it is.", "How so", "<think>\nSums.\n</think>\n\n2 + 2", "Ah", "Oh")
    roles = ("user", "assistant") * 3
    turns = tuple((role, around.format(content)) for role, content in zip(roles, contents, strict=True))
    with_system = around == "{}" and format.system_prefix is not None  # Llama 2 strips a system turn with the user's
    systems = [None, "Be brief."] if with_system else [None]
    for system in systems:
        for length in (1, 3, 5):
            messages = [{"role": "system", "content": system}] if system else []
            messages += [{"role": role, "content": content} for role, content in turns[: length + 1]]
            prompt = "".join(text for text, _ in format.prompt(turns[:length], system))
            answer = format.lead + format.said(turns[length][1]) + format.assistant_suffix
            alike = _render(tokenizer, messages[:-1], True) == prompt
            if not alike or _render(tokenizer, messages, False) != prompt + answer:
                return False
    return True
