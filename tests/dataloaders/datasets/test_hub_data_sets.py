"""Every data set of the hub, on rows in the hub's own format, through the hub's door and through a local file."""

import pytest

from dataloaders.datasets.everyday import DATA


def hh(question, chosen, rejected):
    return {
        "chosen": f"\n\nHuman: {question}\n\nAssistant: {chosen}",
        "rejected": f"\n\nHuman: {question}\n\nAssistant: {rejected}",
    }


def shp(post, reply_a, reply_b, label, score_a, score_b):
    return {
        "post_id": "hmmxmz",
        "domain": "askculinary_train",
        "upvote_ratio": 0.98,
        "history": post,
        "c_root_id_A": "a1",
        "c_root_id_B": "b1",
        "created_at_utc_A": 1599527262,
        "created_at_utc_B": 1599529000,
        "score_A": score_a,
        "score_B": score_b,
        "human_ref_A": reply_a,
        "human_ref_B": reply_b,
        "labels": label,
        "seconds_difference": 1738.0,
        "score_ratio": max(score_a, score_b) / min(score_a, score_b),
    }


def oasst(identity, parent, text, role, rank=None, lang="en"):
    return {
        "message_id": identity,
        "parent_id": parent,
        "user_id": "u",
        "created_date": "2023-02-05T14:23:50.983374+00:00",
        "text": text,
        "role": role,
        "lang": lang,
        "review_count": 3,
        "review_result": True,
        "deleted": False,
        "rank": rank,
        "synthetic": False,
        "model_name": None,
        "detoxify": None,
        "message_tree_id": "r",
        "tree_state": "ready_for_export",
        "emojis": {"name": ["+1"], "count": [1]},
        "labels": {"name": ["spam"], "value": [0.0], "count": [3]},
    }


def messages(*contents):
    return [
        {"content": content, "role": "assistant" if place % 2 else "user"} for place, content in enumerate(contents)
    ]


def ultrabin(prompt, chosen, rejected, score_chosen=8.0, score_rejected=4.5):
    return {
        "prompt": prompt,
        "prompt_id": "p",
        "chosen": messages(prompt, chosen),
        "rejected": messages(prompt, rejected),
        "messages": messages(prompt, chosen),
        "score_chosen": score_chosen,
        "score_rejected": score_rejected,
    }


def slimorca(*turns):
    return {"conversations": [{"from": sender, "value": value, "weight": None} for sender, value in turns]}


def alpaca(instruction, output):
    return {
        "dataset": "helpful_base",
        "instruction": instruction,
        "output": output,
        "generator": "text_davinci_003",
    }


TREE = [
    oasst("r", None, "Hello?", "prompter"),
    oasst("a2", "r", "worst", "assistant", 2),
    oasst("a0", "r", " best ", "assistant", 0),
    oasst("a1", "r", "middle", "assistant", 1),
    oasst("q", "a2", "And now?", "prompter"),
    oasst("b1", "q", "second", "assistant", 1),
    oasst("b0", "q", "first", "assistant", 0),
    oasst("s", None, "Hola?", "prompter", lang="es"),
    oasst("s0", "s", "Hola", "assistant", 0, lang="es"),
    oasst("n", "a0", "No answers", "prompter"),
    oasst("u", "n", "unranked", "assistant"),
]
HH_ROWS = [hh("Hi?", "yes", "no"), hh("Hi?", "yes", "never"), hh("Other?", "", "no")]
SLIMORCA_ROWS = [
    slimorca(("system", "Be kind."), ("human", f"Question {number}?"), ("gpt", f"Answer {number}."))
    for number in range(40)
]
SHP_ROWS = [
    shp("Why?", "loses", "wins", 0, 3, 12),
    shp("Why?", "close", "wins", 0, 11, 12),
    shp("Why?", "best", "wins", 1, 30, 12),
]

# data set -> (hub splits, what the hub is asked for)
SERVED = {
    "shp": ({"train": SHP_ROWS, "test": SHP_ROWS}, {"path": "stanfordnlp/SHP"}),
    "hh": ({"train": HH_ROWS, "test": HH_ROWS[:1]}, {"path": "Anthropic/hh-rlhf", "data_dir": None}),
    "hh_helpful": ({"train": HH_ROWS, "test": HH_ROWS[:1]}, {"data_dir": "helpful-base"}),
    "hh_harmless": ({"train": HH_ROWS, "test": HH_ROWS[:1]}, {"data_dir": "harmless-base"}),
    "hh_online": ({"train": HH_ROWS, "test": HH_ROWS[:1]}, {"data_dir": "helpful-online"}),
    "hh_rejection_sampled": (
        {"train": HH_ROWS, "test": HH_ROWS[:1]},
        {"data_dir": "helpful-rejection-sampled"},
    ),
    "oasst": ({"train": TREE, "validation": TREE[:4]}, {"path": "OpenAssistant/oasst1"}),
    "ultrabin": (
        {"train_prefs": [ultrabin("Why?", "so", "no")], "test_prefs": [ultrabin("How?", "thus", "no")]},
        {"path": "HuggingFaceH4/ultrafeedback_binarized"},
    ),
    "slimorca": ({"train": SLIMORCA_ROWS}, {"path": "Open-Orca/SlimOrca-Dedup", "split": "train"}),
    "alpacaeval": (
        {"train": [alpaca("Name a fruit.", "Apple.")]},  # the split that a JSON file by itself has
        {"path": "json", "data_files": "hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval.json"},
    ),
}


DOCUMENTS = ("toxicity_pile", "pii_pile", "pep8_codeparrot")
"""They stream, and are no prompts and responses: see `test_documents_stream_from_the_hub`."""


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_stream_from_the_hub(name, monkeypatch):
    """Prevents documents that are all fetched before the first step, shards out of order, a hub that nobody asks."""
    import datasets
    from omegaconf import OmegaConf

    from launch.compose import compose
    from launch.pretraining import build_corpora

    asked, read = [], []

    def serve(repository: str, **options):
        asked.append((repository, options))

        def rows():
            for number in range(3):
                read.append(f"{repository} {number}")
                yield {"texts": [f"{repository} {number}. ", "More."], "scores": [0.5, 0.0], "avg_score": 0.25}

        return rows()

    monkeypatch.setattr(datasets, "load_dataset", serve)
    (corpus,) = build_corpora(compose([f"datasets=[{name}]", "loss=mle"]), "train")
    shards = list(OmegaConf.load(DATA.parent / "config" / "datasets" / f"{name}.yaml").hub)
    documents = corpus.documents(scored=True)
    first = next(documents)
    assert first.text.startswith(f"{shards[0]} ") and len(read) <= 3
    rest = [one.text.split(" ")[0] for one in documents]
    assert [shard for shard, _ in asked] == shards
    assert list(dict.fromkeys([first.text.split(" ")[0], *rest])) == shards
    assert all(options == {"split": "train", "revision": None, "streaming": True} for _, options in asked)


@pytest.mark.parametrize("revision", ["v1", ["b39", "123"]])
def test_documents_of_a_revision(revision, monkeypatch):
    """Prevents one commit for several repositories, which has none of them but one."""
    import datasets

    from launch.compose import compose
    from launch.pretraining import build_corpora

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda hub, **options: asked.append((hub, options["revision"])) or [])
    config = compose(["datasets=[pii_pile]", "loss=mle"])
    config.datasets.pii_pile.hub = ["a/one", "b/two"]
    config.datasets.pii_pile.revision = revision
    (corpus,) = build_corpora(config, "train")
    assert list(corpus.documents()) == []
    first, second = [revision] * 2 if isinstance(revision, str) else revision
    assert asked == [("a/one", first), ("b/two", second)]
    (newest,) = build_corpora(compose(["datasets=[pii_pile]", "loss=mle"]), "train")
    assert corpus.digest() != newest.digest()


@pytest.mark.parametrize(("name", "message"), [
    ("pii_pile", r"datasets.pii_pile.revision has 2 revisions, and datasets.pii_pile.hub has 39 repositories"),
    ("hh", r"datasets.hh.revision=\['a', 'b'\]: hh is one repository"),
])  # fmt: skip
def test_revisions_are_one_for_each_repository(name, message):
    """Prevents revisions that are read of the repositories beside theirs."""
    from launch.compose import compose

    loss = "kto" if name == "hh" else "mle"
    with pytest.raises(ValueError, match=message):
        compose([f"datasets=[{name}]", f"loss={loss}", f"datasets.{name}.revision=[a,b]"])


def test_every_hub_data_set_is_tested_here():
    """Prevents a data set whose hub path no test goes."""
    names = {file.stem for file in (DATA.parent / "config" / "datasets").glob("*.yaml")}
    assert set(SERVED) == names - {"local", "everyday", *DOCUMENTS}


@pytest.mark.parametrize(
    ("name", "split"),
    [(name, split) for name in SERVED for split in ("train", "test") if (name, split) != ("alpacaeval", "train")],
)
def test_hub_and_local_file_give_the_same(name, split, sources):
    """Prevents a local copy of the hub's rows from becoming other examples than the hub's."""
    splits, asked = SERVED[name]
    sources.serve(splits)
    fraction = {"test_fraction": 0.3} if name == "slimorca" else {}
    from_hub = sources.load(name, split, **fraction)
    assert asked.items() <= sources.asked[0].items()
    train, *test = splits.values()
    paths = {"path": sources.file(train)} | ({"test_path": sources.file(test[0], "test.jsonl")} if test else {})
    assert sources.account(sources.load(name, split, **paths, **fraction)) == sources.account(from_hub)
    assert from_hub.used and all(example.dataset_name == name for example in from_hub)


@pytest.mark.parametrize("name", [name for name in SERVED if name != "alpacaeval"])
def test_parquet_gives_the_same_as_jsonl(name, sources, tmp_path):
    """Prevents nested or missing values from reading otherwise out of Parquet, the hub's own file format."""
    import datasets

    rows = next(iter(SERVED[name][0].values()))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    jsonl = sources.load(name, path=sources.file(rows), test_fraction=0.0)
    assert sources.account(
        sources.load(name, path=str(tmp_path / "rows.parquet"), test_fraction=0.0)
    ) == sources.account(jsonl)


def test_unreachable_hub_says_which_local_path_would_do(sources, monkeypatch):
    """Prevents a cluster without internet from ending in a traceback of the hub's client."""
    import datasets

    def refuse(*arguments, **options):
        raise ConnectionError("Couldn't reach 'stanfordnlp/SHP' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match=r"ConnectionError.*datasets\.shp\.path=FILE"):
        sources.load("shp")


def test_revision_reaches_the_hub(sources):
    """Prevents a pinned revision that is not read."""
    sources.serve(SERVED["hh"][0])
    sources.load("hh", revision="abc")
    assert sources.asked[0]["revision"] == "abc"
    sources.serve(SERVED["alpacaeval"][0])
    sources.load("alpacaeval", "test", revision="abc")
    assert "@abc/" in sources.asked[1]["data_files"]


def test_shp_keeps_clear_pairs_and_imitates_the_best_winner(sources):
    """Prevents HALOs' arbitrary SFT target, and close scores in training; the test split keeps every pair."""
    sources.serve(SERVED["shp"][0])
    dataset = sources.load("shp")
    (example,) = dataset
    assert example.prompt == "<U>Why?</U><A>"
    assert [(example.generations[i], example.generations[j]) for i, j in example.pairs] == [
        ("wins", "loses"),
        ("best", "wins"),
    ]
    assert dict(zip(example.generations, example.scores, strict=True)) == {"wins": 12, "loses": 3, "best": 30}
    assert example.generations[example.sft_index] == "best"
    assert dataset.dropped == {"scores too close": 1} and dataset.unusable == 0
    assert sources.load("shp", "test").used == 3


def test_shp_caps_the_pairs_of_a_prompt_whatever_the_order(sources):
    """Prevents a long thread from outweighing the others, and a cap that depends on the order of rows."""
    rows = [shp("Why?", f"good {number}", f"bad {number}", 1, 90, 2) for number in range(9)]
    pairs = []
    for order in (rows, rows[::-1]):
        dataset = sources.load("shp", path=sources.file(order), test_fraction=0.0)
        assert dataset.dropped == {"more pairs of one prompt than max_pairs": 4}
        pairs.append({example.generations[i] for example in dataset for i, _ in example.pairs})
    assert pairs[0] == pairs[1] and len(pairs[0]) == 5


def test_shp_refuses_a_label_or_score_that_is_none(sources):
    """Prevents a label of another meaning, or NaN, from becoming a silent preference for B."""
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: field 'labels' must be 1"):
        sources.load("shp", path=sources.file([shp("Why?", "a", "b", 2, 9, 2)]))
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: field 'score_A' must be a finite"):
        sources.load("shp", path=sources.file([shp("Why?", "a", "b", 1, float("nan"), 2)]))


def test_oasst_pairs_neighbours_and_imitates_the_best(sources):
    """Prevents HALOs' SFT target (the last generation, one that lost), and pairs across ranks that nobody compared."""
    sources.serve(SERVED["oasst"][0])
    dataset = sources.load("oasst")
    first, second = dataset
    assert first.prompt == "<U>Hello?</U><A>"
    assert second.prompt == "<U>Hello?</U><A>worst</A><U>And now?</U><A>"
    assert {(first.generations[i], first.generations[j]) for i, j in first.pairs} == {
        ("best", "middle"),
        ("middle", "worst"),
    }
    for example, best in ((first, "best"), (second, "first")):
        assert example.generations[example.sft_index] == best
        assert example.scores[example.sft_index] == max(example.scores) == 0
    assert dataset.rows == 11 and dataset.used == 7
    assert dataset.dropped == {"language is not en": 2, "message without ranked replies": 1, "reply without a rank": 1}
    assert dataset.unusable == 0
    assert sources.load("oasst", "test").rows == 4


def test_oasst_tree_never_straddles_a_split(sources):
    """Prevents a test prompt that holds the replies another prompt of its tree is trained on."""
    rows = []
    for number in range(30):
        tree = [dict(row, message_id=f"{row['message_id']}{number}") for row in TREE[:7]]
        for row in tree:
            row["parent_id"] = row["parent_id"] and f"{row['parent_id']}{number}"
        tree[0]["text"] = f"Hello {number}?"
        rows += tree
    path = sources.file(rows)
    shares = [sources.load("oasst", split, path=path, test_fraction=0.3) for split in ("train", "test")]
    roots = [{example.prompt.split("</U>")[0] for example in share} for share in shares]
    assert not roots[0] & roots[1] and len(roots[0] | roots[1]) == 30
    assert sum(share.rows for share in shares) == 210


def test_ultrabin_keeps_scores_and_drops_unlike_prompts(sources):
    """Prevents two conversations with different prompts from being compared."""
    strange = ultrabin("Why?", "so", "no") | {"rejected": messages("Where?", "no")}
    dataset = sources.load("ultrabin", path=sources.file([ultrabin("Why?", "so", "no"), strange]), test_fraction=0.0)
    (example,) = dataset
    assert (example.generations, example.scores, example.sft_index) == (["so", "no"], [8.0, 4.5], 0)
    assert dataset.dropped == {"prompts of chosen and rejected differ": 1}


def test_slimorca_keeps_the_system_turn_and_all_replies(sources):
    """Prevents a system turn from being read as the user's, and later replies from being lost."""
    long = slimorca(("system", "Be kind."), ("human", "A?"), ("gpt", "B."), ("human", "C?"), ("gpt", "D."))
    unended = slimorca(("human", "A?"), ("gpt", "B."), ("human", "C?"))
    dataset = sources.load("slimorca", path=sources.file([long, unended]), test_fraction=0.0)
    (example,) = dataset
    assert (example.prompt, example.system) == ("<U>A?</U><A>", "Be kind.")
    assert example.generations == ["B.</A><U>C?</U><A>D."] and example.sft_index == 0
    assert dataset.dropped == {"conversation does not end with the assistant": 1}


def test_slimorca_splits_the_hubs_only_split(sources):
    """Prevents test prompts that are trained on, since the hub has no test split for this one."""
    sources.serve(SERVED["slimorca"][0])
    shares = [sources.load("slimorca", split, test_fraction=0.3) for split in ("train", "test")]
    prompts = [{example.prompt for example in share} for share in shares]
    assert all(prompts) and not prompts[0] & prompts[1]
    assert [share.rows for share in shares] == [len(one) for one in prompts] and sum(map(len, prompts)) == 40


def test_alpacaeval_is_for_testing_only(sources):
    """Prevents training on the instructions that the judge compares on."""
    with pytest.raises(ValueError, match="has no train split"):
        sources.load("alpacaeval")
    rows = [alpaca("Name a fruit.", "Apple."), alpaca("Name a fruit.", "Pear.")]
    dataset = sources.load("alpacaeval", "test", path=sources.file(rows))
    (example,) = dataset
    assert example.generations == ["Apple."] and example.metadata == {"dataset": "helpful_base"}
    assert dataset.dropped == {"same instruction again": 1}


def test_unknown_role_of_a_hub_row_names_file_and_line(sources):
    """Prevents a foreign file from being read as if every unknown sender were the assistant."""
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: field 'role'"):
        sources.load("oasst", path=sources.file([oasst("r", None, "Hi", "bot")]))
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: each of `conversations`"):
        sources.load("slimorca", path=sources.file([slimorca(("bot", "Hi"))]))


def test_strings_stand_in_the_prompt_only_where_they_belong(sources):
    """Prevents HALOs' suffix after the role's mark in place of after the text."""
    dialogue = "\n\nHuman: A?\n\nAssistant: B.\n\nHuman: C?\n\nAssistant: "
    row = {"chosen": dialogue + "yes", "rejected": dialogue + "no"}
    (example,) = sources.load("hh", path=sources.file([row]), test_fraction=0.0)
    assert example.prompt == "<U>A?</U><A>B.</A><U>C?</U><A>" and example.generations == ["yes", "no"]
    assert sources.strings[3] not in "".join(example.generations)
