"""Reading samples: what is wrong is said with the place and the fix."""

import json

import pytest

from scorers.samples import choose_prompts, prompt_text, read_samples, without_secrets, word_lengths

ROW = {"prompt": "Who?", "chosen": "She.", "policy": "He."}


def _write(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def _read(path, keys=("policy", "chosen"), history="prompt"):
    return read_samples(path, keys, history)


def test_both_shapes_are_read(tmp_path):
    """Prevents refusing HALOs' first format (a bare array), or losing the run's name."""
    samples = _read(_write(tmp_path, {"sampled_at": "now", "config": {"exp_name": "kto"}, "samples": [ROW]}))
    assert (samples.exp_name, samples.rows, samples.config) == ("kto", [ROW], {"exp_name": "kto"})
    bare = _read(_write(tmp_path, [ROW]))
    assert (bare.exp_name, bare.rows, bare.config) == ("run", [ROW], {})


def test_a_byte_order_mark_is_passed_over(tmp_path):
    """Prevents refusing a file that an editor saved again."""
    assert _read(_write(tmp_path, "\ufeff" + json.dumps([ROW]))).rows == [ROW]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"samples": [', r"run.json is not valid JSON \(line 1, column 14"),
        ('{"prompt": "a"}\n{"prompt": "b"}', "line 2, column 1.*JSON Lines"),
        ("", "not valid JSON"),
        ("3", "must be an array"),
        ("[" * 100_000, "malformed JSON"),
        ([ROW | {"deep": json.loads("[" * 300 + "]" * 300)}], "malformed JSON: it is nested more than 100 levels"),
        ("9" * 5000, "run.json is malformed JSON"),
        ({"sample": []}, "no `samples`; its keys are: sample"),
        ([], "holds no samples"),
        ({"samples": [ROW], "config": 3}, "`config` must be an object"),
        ([ROW, 3], "sample 1 must be an object"),
        ([ROW, ROW, {"prompt": "Who?", "policy": "He."}], r"1 of 3 samples lack the key `chosen` \(samples 2"),
        ([ROW | {"policy": None}], "sample 0: `policy` must be text, not NoneType"),
        ([ROW | {"prompt": [1, 2]}], "sample 0: `prompt` must be text or a list of messages"),
    ],
)
def test_bad_files_are_named_with_the_place(tmp_path, content, message):
    """Prevents a traceback, or a comparison of what is not there."""
    with pytest.raises(ValueError, match=message):
        _read(_write(tmp_path, content))


def test_a_misspelled_key_gets_a_suggestion(tmp_path):
    """Prevents guessing what `-bk` may be."""
    path = _write(tmp_path, [ROW])
    with pytest.raises(ValueError, match="`chosn`; the keys are: prompt, chosen, policy; did you mean `chosen`"):
        _read(path, ("policy", "chosn"))
    with pytest.raises(ValueError, match="both `policy`"):
        _read(path, ("policy", "policy"))
    with pytest.raises(ValueError, match=r"did you mean `run\.json`"):
        _read(path.replace("run", "runn"))


def test_a_smaller_choice_is_part_of_a_larger_one():
    """Prevents judgments paid for with `-mc 3` from being useless for `-mc 5`, and taking just the first N."""
    rows = [{"prompt": f"p{index % 10}", "n": index} for index in range(20)]
    chosen = {n: [row["n"] for row in choose_prompts(rows, "prompt", n, 0)] for n in (3, 5)}
    assert len(chosen[3]) == 6 and len(chosen[5]) == 10  # both rows of every chosen prompt
    assert set(chosen[3]) < set(chosen[5]) and chosen[5] == sorted(chosen[5])
    assert chosen[3] != [row["n"] for row in choose_prompts(rows, "prompt", 3, 1)]
    assert choose_prompts(rows, "prompt", None, 0) == choose_prompts(rows, "prompt", 99, 0) == rows


def test_the_choice_is_of_prompts_and_not_of_places():
    """Prevents files of the same prompts in another order, or with some more, of which other prompts are judged."""
    rows = [{"prompt": f"p{index}"} for index in range(20)] + [{"prompt": "\ud800"}]
    chosen = {row["prompt"] for row in choose_prompts(rows, "prompt", 5, 0)}
    assert {row["prompt"] for row in choose_prompts(rows[::-1], "prompt", 5, 0)} == chosen
    shared = {f"p{index}" for index in range(8)}
    some = {row["prompt"] for row in choose_prompts(rows, "prompt", 3, 0, shared)}
    others = rows[4:9] + rows[:4]
    assert some < shared and some == {row["prompt"] for row in choose_prompts(others, "prompt", 3, 0, shared)}
    assert {row["prompt"] for row in choose_prompts(rows, "prompt", 99, 0, shared)} == shared
    assert choose_prompts(rows, "prompt", None, 0, shared) == rows


def test_a_conversation_is_shown_whole():
    """Prevents judging a late turn without what came before it."""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    assert prompt_text(messages) == "user: Hi\n\nassistant: Yes?"


def test_lengths_are_words_one_number_a_prompt():
    """Prevents a list of lengths that does not line up with the prompts that are counted."""
    rows = [{"prompt": "a", "policy": "x y"}, {"prompt": "b", "policy": ""}, {"prompt": "a", "policy": "x y z"}]
    assert word_lengths(rows, "policy", "prompt") == [2.5, 0]


def test_secrets_stay_out_of_the_results():
    """Prevents a key in the run's configuration from being copied into a file that people share."""
    kept = {"max_tokens": 3, "chosen_control_token": "<|good|>", "tokenizer_name_or_path": "x", "candidate_key": "k"}
    config = {
        "wandb": {"api_key": "s", "WANDB_TOKEN": "s"},
        "hf_token": "s",
        "password": "s",
        "url": ["https://my-key@x"],
    }
    assert without_secrets(kept | config, None, "my-key") == kept | {"wandb": {}, "url": ["https://[secret]@x"]}
    assert without_secrets({"note": "use sk-" + "a1" * 12}) == {"note": "use [secret]"}
