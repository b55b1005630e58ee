"""local: every shape of a user's own rows, and the errors that name file, line and fix."""

import pytest

USER = {"role": "user", "content": "Q?"}
REPLY = {"role": "assistant", "content": " A. "}
PROMPT = "<U>Q?</U><A>"


def only(dataset):
    (example,) = dataset
    assert dataset.rows == dataset.used + sum(dataset.dropped.values()) and example.rows == dataset.used
    return example


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": " Q? ", "chosen": "A. ", "rejected": "B."},
        {"prompt": [USER], "chosen": [REPLY], "rejected": [{"role": "assistant", "content": "B."}]},
        {"chosen": [USER, REPLY], "rejected": [USER, {"role": "assistant", "content": "B."}]},
        {"prompt": "Q?", "chosen": [USER, REPLY], "rejected": [USER, {"role": "assistant", "content": "B."}]},
    ],
)
def test_pairs(sources, row):
    """Prevents one spelling of the same pair from becoming another example than the others."""
    example = only(sources.load_local([row]))
    assert (example.prompt, example.generations) == (PROMPT, ["A.", "B."])
    assert (example.pairs, example.sft_index, example.weights) == ([(0, 1)], 0, [1.0, 1.0])


def test_system_turn_and_history(sources):
    """Prevents a system turn from being read as the user's, or two prompts that differ by it from being one."""
    system = {"role": "system", "content": "Be brief."}
    row = {"prompt": [system, USER, REPLY, USER], "chosen": "yes", "rejected": "no"}
    plain = {"prompt": [USER, REPLY, USER], "chosen": "yes", "rejected": "no"}
    first, second = sources.load_local([row, plain])
    assert first.prompt == second.prompt == "<U>Q?</U><A>A.</A><U>Q?</U><A>"
    assert (first.system, second.system) == ("Be brief.", None)


def test_token_ids_are_used_as_they_are(sources):
    """Prevents ids from being joined with strings or taken for a message list."""
    example = only(sources.load_local([{"prompt": [1, 2], "chosen": [3], "rejected": [4, 5]}]))
    assert (example.prompt, example.generations, example.pairs) == ([1, 2], [[3], [4, 5]], [(0, 1)])


def test_feedback(sources):
    """Prevents a thumbs-down completion from becoming the SFT target, and contradictions from going unnoticed."""
    rows = [
        {"prompt": "Q?", "completion": "bad", "label": False},
        {"prompt": "Q?", "completion": "good", "label": 1},
        {"prompt": "Q?", "completion": "good", "label": True},
        {"prompt": "Q?", "completion": "bad", "label": 1.0},
        {"prompt": "Q?", "completion": " ", "label": 0},
    ]
    dataset = sources.load_local(rows)
    example = only(dataset)
    assert (example.generations, example.desirable, example.sft_index) == (["bad", "good"], [False, True], 1)
    assert dataset.dropped == {"same label again": 1, "label contradicts an earlier row": 1, "empty response": 1}
    only_bad = only(sources.load_local(rows[:1]))
    assert only_bad.sft_index is None


SCORED = {"prompt": "Q?", "completions": ["low", "high", "mid", "mid too"], "scores": [1, 4, 2.5, 2.5]}


def test_scored(sources):
    """Prevents the worst completion from being imitated, and equal scores from becoming a preference."""
    example = only(sources.load_local([SCORED]))
    assert (example.pairs, example.sft_index) == ([(1, 0)], 1)
    assert example.desirable == [False, True, None, None]  # the mean is 2.5
    example = only(sources.load_local([SCORED], score_pairs="all", desirable_threshold=2.5))
    assert sorted(example.pairs) == [(1, 0), (1, 2), (1, 3), (2, 0), (3, 0)]
    assert example.desirable == [False, True, True, True]
    equal = only(sources.load_local([SCORED | {"scores": [0.1] * 4}]))
    assert equal.pairs == [] and equal.desirable == [None] * 4
    with pytest.raises(ValueError, match=r"datasets\.local\.score_pairs must be best_worst or all"):
        sources.load_local([SCORED], score_pairs="some")


def test_scored_rows_of_one_prompt_are_ranked_together(sources):
    """Prevents pairs and means from being taken from half of a prompt's completions."""
    rows = [
        {"prompt": "Q?", "completions": ["a", "b"], "scores": [1, 2]},
        {"prompt": "Q?", "completions": ["b", "c"], "scores": [9, 3]},
        {"prompt": "Q?", "completions": ["c"], "scores": [7]},
    ]
    dataset = sources.load_local(rows)
    example = only(dataset)
    assert (example.scores, example.pairs, example.desirable) == ([1, 2, 3], [(2, 0)], [False, None, True])
    assert dataset.dropped == {"same completions again": 1}


def test_demonstrations(sources):
    """Prevents later assistant turns from being lost, and two demonstrations of one prompt from becoming one."""
    dataset = sources.load_local([{"messages": [USER, REPLY, USER, REPLY]}, {"messages": [USER, REPLY, USER]}])
    example = only(dataset)
    assert (example.prompt, example.generations, example.sft_index) == (PROMPT, ["A.</A><U>Q?</U><A>A."], 0)
    assert dataset.dropped == {"conversation does not end with the assistant": 1}
    rows = [{"prompt": "Q?", "completion": reply} for reply in ("A.", "B.", "A.")]
    dataset = sources.load_local(rows)
    assert [example.generations for example in dataset] == [["A."], ["B."]]
    assert dataset.dropped == {"same demonstration again": 1}


def test_documents(sources):
    """Prevents documents, which share the empty prompt, from becoming one example or falling on one side of a split."""
    rows = [{"text": f" def f{n}(): pass\n", "segments": ["a", "b"], "scores": [0.5, 1]} for n in range(40)]
    first, *_ = dataset = list(sources.load_local(rows))
    assert len(dataset) == 40
    assert (first.prompt, first.generations, first.sft_index) == ("", [" def f0(): pass\n"], 0)
    assert first.metadata == {"segments": ["a", "b"], "scores": [0.5, 1]}
    path = sources.file(rows)
    shares = [sources.load("local", split, path=path, test_fraction=0.3) for split in ("train", "test")]
    assert all(len(share) > 4 for share in shares) and sum(share.rows for share in shares) == 40


def test_weights(sources):
    """Prevents a weight from being lost, or from leaking to other rows of the same prompt and response."""
    rows = [
        {"prompt": "Q?", "chosen": "A", "rejected": "B", "weight": 2},
        {"prompt": "Q?", "chosen": "C", "rejected": "D", "weight": 0},
        {"prompt": "Q?", "chosen": "A", "rejected": "C"},
    ]
    dataset = sources.load_local(rows)
    weights = {
        (example.generations[i], example.generations[j]): example.pair_weight(i, j)
        for example in dataset
        for i, j in example.pairs
    }
    assert weights == {("A", "B"): 2, ("C", "D"): 0, ("A", "C"): 1}
    scored = only(sources.load_local([SCORED | {"weight": 0.5}]))
    assert scored.weights == [0.5] * 4


def test_other_keys_go_to_the_metadata(sources):
    """Prevents the facts that the offline judge needs from being lost on the way."""
    row = {"prompt": "Q?", "completion": "A", "label": True, "facts": ["A"], "source": "me"}
    assert only(sources.load_local([row])).metadata == {"facts": ["A"], "source": "me"}


PAIR = {"prompt": "Q?", "chosen": "A", "rejected": "B"}
FEEDBACK = {"prompt": "Q?", "completion": "A", "label": True}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q?", "chosen": "A", "rejcted": "B"}, "rejected.*did you mean 'rejected' by 'rejcted'"),
        ({"prompt": "Q?", "completion": "A", "label": "yes"}, "`label` must be true or false"),
        ({"prompt": "Q?", "completion": "A", "label": 2}, "`label` must be true or false"),
        ({"prompt": "Q?", "completion": "A", "label": None}, "`label` must be true or false.*null"),
        ({"question": "Q?"}, "of no known shape.*pairs: prompt, chosen, rejected"),
        (SCORED | {"scores": [1, 2, 3]}, "4 completions but 3 scores"),
        (SCORED | {"scores": [1, 2, 3, None]}, "score 4 must be a finite number, not null"),
        (SCORED | {"scores": [1, 2, float("nan"), 4]}, "score 3 must be a finite number"),
        (SCORED | {"scores": "1234"}, "field 'scores' must be list"),
        (PAIR | {"weight": -1}, "`weight` must be a finite number, 0 or more"),
        (PAIR | {"weight": float("inf")}, "`weight` must be a finite number"),
        (PAIR | {"weight": "2"}, "`weight` must be a finite number"),
        (PAIR | {"weihgt": 2}, "unknown key 'weihgt'; did you mean 'weight'"),
        (PAIR | {"prompt": 3}, "`prompt` must be a list of messages"),
        (PAIR | {"chosen": 3}, "`chosen` must be a text, a list of messages or token ids"),
        (PAIR | {"chosen": [USER]}, "one response"),
        (PAIR | {"chosen": [USER, REPLY], "rejected": "B"}, "`rejected` must be a list of messages"),
        (PAIR | {"prompt": "P?", "chosen": [USER, REPLY], "rejected": [USER, REPLY]}, "does not go on from `prompt`"),
        (PAIR | {"prompt": [{"role": "bot", "content": "Q?"}]}, "role 'bot', not system, user or assistant"),
        (PAIR | {"prompt": [{"role": "user"}]}, "message 1 has no text"),
        ({"messages": [USER, {"role": "system", "content": "x"}, REPLY]}, "only the first message"),
        ({"messages": []}, "`messages` must be a list"),
        ({"text": 3}, "`text` must be a text"),
        ({"text": "a", "segments": ["a"], "scores": [1, 2]}, "1 segments but 2 scores"),
        ({"text": "a", "scores": [float("nan")]}, "score 1 must be a finite number"),
    ],
)
def test_bad_row_names_file_line_and_fix(sources, row, message):
    """Prevents a row of another meaning from being read as if it were right."""
    with pytest.raises(ValueError, match=rf"rows\.jsonl:1: .*{message}"):
        sources.load_local([row])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (PAIR, FEEDBACK),
        ({"prompt": "Q?", "completion": "A"}, FEEDBACK),
        (FEEDBACK, {"prompt": "Q?", "completion": "A"}),
    ],
)
def test_rows_of_two_shapes_are_refused(sources, first, second):
    """Prevents a thumbs-down from being imitated because the rows before it were demonstrations."""
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: this row has the keys of .* a file of its own"):
        sources.load_local([first, second])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": " "}, "empty prompt"),
        ({"prompt": [REPLY, USER]}, "conversation does not begin with the user"),
        ({"prompt": [USER, REPLY]}, "prompt does not end with the user"),
        ({"prompt": [USER, USER]}, "turns do not alternate"),
        ({"chosen": ""}, "empty response"),
        ({"rejected": "A"}, "chosen equals rejected"),
    ],
)
def test_unusable_rows_are_counted(sources, changes, reason):
    """Prevents rows that cannot be trained on from vanishing uncounted."""
    dataset = sources.load_local([PAIR, PAIR | changes])
    assert dataset.dropped == {reason: 1} and (dataset.rows, dataset.used, dataset.unusable) == (2, 1, 1)


def test_whole_conversations_must_share_their_prompt(sources):
    """Prevents replies to two different questions, or under two system turns, from being compared."""
    other = [{"role": "user", "content": "R?"}, REPLY]
    system = [{"role": "system", "content": "S"}, USER, {"role": "assistant", "content": "B"}]
    good = {"chosen": [USER, REPLY], "rejected": [USER, {"role": "assistant", "content": "B"}]}
    dataset = sources.load_local([good, good | {"rejected": other}, good | {"rejected": system}])
    assert dataset.dropped == {"prompts of chosen and rejected differ": 2}
