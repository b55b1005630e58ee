"""The strings around turns, taken from real templates: joined, they are what the template renders."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataloaders.chat_format import MARKERS, Conversation, chat_format
from models.byte_tokenizer import byte_tokenizer
from tests import tiny
from tests.dataloaders.templates import FAMILIES, tokenizer_of

CONVERSATIONS = [
    ["What is a fox?"],
    ["Hi", "Hello!\n\nHow are you?", "Fine"],
    ["1", "2", "3", "4", "5"],
    ["{{ x }} {% raw %}", "user", "assistant: 'x'"],
]


def messages(contents: list[str], system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant") * len(contents)
    turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return ([{"role": "system", "content": system}] if system else []) + turns


def turns(contents: list[str]) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in messages(contents))


def joined(format, contents: list[str], system: str | None = None) -> str:
    return "".join(text for text, _ in format.prompt(turns(contents), system))


@pytest.mark.parametrize("name", FAMILIES)
def test_joined_strings_are_what_the_template_renders(name: str):
    """Prevents a model from being trained on prompts that differ from those it will be asked with."""
    tokenizer = tokenizer_of(name)
    format = chat_format(tokenizer)
    assert (format.tokenizer is None) == FAMILIES[name].apart
    for contents in CONVERSATIONS:
        for system in (None, "Be brief.") if FAMILIES[name].system else (None,):
            expected = tokenizer.apply_chat_template(
                messages(contents, system), tokenize=False, add_generation_prompt=True
            )
            assert joined(format, contents, system) == expected


@pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILIES[name].apart])
def test_an_answered_conversation_is_what_the_template_renders(name: str):
    """Prevents a response that begins or ends otherwise than the template's: the space before it in Llama 2, say."""
    tokenizer = tokenizer_of(name)
    format = chat_format(tokenizer)
    for contents in CONVERSATIONS:
        expected = tokenizer.apply_chat_template(messages([*contents, "Yes."]), tokenize=False)
        assert joined(format, contents) + format.lead + "Yes." + format.assistant_suffix == expected
        assert format.end_of_turn + format.after_end_of_turn == format.assistant_suffix


@pytest.mark.parametrize("name", ["llama2", "llama3", "gemma", "stripping"])
def test_templates_that_strip_contents(name: str):
    """Prevents a data set's stray white space from standing where the template would have stripped it."""
    tokenizer = tokenizer_of(name)
    format = chat_format(tokenizer)
    contents = [" Hi\n", "\n Hello ", "So\t"]
    assert format.strips
    expected = tokenizer.apply_chat_template(messages(contents), tokenize=False, add_generation_prompt=True)
    assert joined(format, contents) == expected
    assert not chat_format(tokenizer_of("chatml")).strips


@pytest.mark.parametrize("name", [name for name in FAMILIES if not FAMILIES[name].system])
def test_a_template_without_system_turns(name: str):
    """Prevents a crash, or a system text that is lost, where the template raises: it opens the first user turn."""
    tokenizer = tokenizer_of(name)
    expected = tokenizer.apply_chat_template(messages(["Be brief.\n\nHi"]), tokenize=False, add_generation_prompt=True)
    assert joined(chat_format(tokenizer), ["Hi"], "Be brief.") == expected


def test_a_thinking_template_without_system_turns():
    """Prevents the template's own exception where it renders the prompt itself."""
    tokenizer = tokenizer_of("qwen3")
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + tokenizer.chat_template
    )
    assert "user\nBe brief.\n\nHi<|im_end|>" in joined(chat_format(tokenizer), ["Hi"], "Be brief.")


@pytest.mark.parametrize(
    ("name", "end"),
    {
        "chatml": "<|im_end|>", "llama2": " </s>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "phi3": "<|end|>",
        "zephyr": "</s>", "vicuna": "</s>", "mistral-v0.1": "</s>", "qwen3": "<|im_end|>",
    }.items(),
)  # fmt: skip
def test_the_end_of_turn_is_the_templates(name: str, end: str):
    """Prevents a model that never learns to stop, or learns what stands after its turn."""
    assert chat_format(tokenizer_of(name)).end_of_turn == end


def test_a_template_that_cannot_be_taken_apart_is_said_once(caplog):
    """Prevents a silent change of behaviour; its later turns cannot be scored, and the error says what to do."""
    with caplog.at_level(logging.INFO):
        format = chat_format(tokenizer_of("qwen3"))
    assert caplog.text.count("cannot be taken apart") == 1
    with pytest.raises(ValueError, match=r"Set model\.human_prefix"):
        format.later_turns((("user", "a"), ("assistant", "b")))


def test_thinking_in_earlier_turns_is_hidden_as_the_template_hides_it():
    """Prevents reasoning of earlier turns in the prompt of a model that was never shown any."""
    prompt = joined(chat_format(tokenizer_of("qwen3")), ["Why?", "<think>\nhm\n</think>\n\nSo.", "Oh"])
    assert "hm" not in prompt and "So." in prompt


def test_a_template_that_raises_on_everything_still_has_an_error():
    """Prevents a model whose template is broken from being trained on nothing."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('broken') }}"
    with pytest.raises(ValueError, match=r"user, assistant \(TemplateError: broken\).*model.human_prefix"):
        chat_format(tokenizer)


def test_without_a_template_the_strings_are_those_of_halos():
    """Prevents another format than HALOs' for base models; the preamble is the BOS that the tokenizer adds itself."""
    tokenizer = tokenizer_of("llama2")
    tokenizer.chat_template = None
    format = chat_format(tokenizer)
    assert joined(format, ["Hi", "Hello", "So?"]) == (
        "<s>\n<|user|>\nHi\n<|assistant|>\nHello\n<|user|>\nSo?\n<|assistant|>\n"
    )
    assert format.end_of_turn == "</s>"
    plain = byte_tokenizer()
    plain.chat_template = None
    assert chat_format(plain).preamble == ""


def test_strings_of_the_config_come_first():
    """Prevents four configured strings from being overruled by the template, and three of them from being accepted."""
    strings = {"human_prefix": "H:", "human_suffix": "\n", "assistant_prefix": "A:", "assistant_suffix": "<|im_end|>!"}
    format = chat_format(byte_tokenizer(), **strings)
    assert joined(format, ["Hi", "Hello", "So?"]) == "H:Hi\nA:Hello<|im_end|>!H:So?\nA:"
    assert (format.end_of_turn, format.after_end_of_turn) == ("<|im_end|>", "!")
    with pytest.raises(ValueError, match="all four"):
        chat_format(byte_tokenizer(), human_prefix="H:")


def test_a_suffix_without_special_token_ends_with_eos():
    """Prevents a doubled suffix between turns where EOS has to be added to it."""
    strings = {"human_prefix": "H:", "human_suffix": "\n", "assistant_prefix": "A:", "assistant_suffix": "\n"}
    format = chat_format(byte_tokenizer(), **strings)
    assert (format.end_of_turn, format.after_end_of_turn) == ("\n<|im_end|>", "")


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs", "Co"]), min_size=1, max_size=8), min_size=1, max_size=6)
)
def test_markers_are_taken_apart_again(contents: list[str]):
    """Prevents a text that looks like a turn from becoming one, and a turn that is lost."""
    conversation = Conversation.parse(tiny.prompt(*contents[: len(contents) - 1 + len(contents) % 2]))
    assert conversation.turns == turns([c.strip() for c in contents[: len(contents) - 1 + len(contents) % 2]])
    assert conversation.open and conversation.opening == ""


def test_a_text_without_markers_is_no_conversation():
    """Prevents a document from being put into a chat."""
    conversation = Conversation.parse("Once upon a time <|im_start|>")
    assert (conversation.opening, conversation.turns, conversation.open) == ("Once upon a time <|im_start|>", (), False)
    assert len(set(MARKERS)) == 4
