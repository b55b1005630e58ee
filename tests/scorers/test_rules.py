"""The offline judges."""

import pytest

from scorers.rules import Rule, finish_reason, has_facts, judge_by_rule, load_rule, words_until_facts


def _prefer(policy, chosen, facts=("Paris",), rule="direct_answer", **more):
    sample = {"prompt": "p", "policy": policy, "chosen": chosen, "facts": list(facts), **more}
    forth = load_rule(rule).prefer(sample, "policy", "chosen")
    assert load_rule(rule).prefer(sample, "chosen", "policy") == -forth  # no order is preferred
    return forth


@pytest.mark.parametrize(
    ("text", "fact", "said"),
    [
        ("It is PARIS.", "Paris", True),
        ("Parisian food", "Paris", False),
        ("_Paris_", "Paris", True),
        ("There are 3 of them", "three|3", True),
        ("Three!", "three|3", True),
        ("13 of them", "3", False),
        ("1.5 litres", "5", False),
        ("5,000", "5", False),
        ("It is 5.", "5", True),
        ("New\n  York", "new york", True),
        ("caf\u00e9s", "caf", False),
        ("C++ it is", "c++", True),
    ],
)
def test_facts_are_whole_words(text, fact, said):
    """Prevents "Parisian" or "13" from passing for the right answer."""
    assert has_facts(text, [fact]) is said


def test_all_facts_are_needed():
    """Prevents half an answer from counting as the answer."""
    assert has_facts("red and blue", ["red", "blue"])
    assert not has_facts("red", ["red", "blue"])


def test_directness_is_the_words_until_the_last_fact():
    """Prevents counting what follows the answer, or stopping at the first of two facts."""
    assert words_until_facts("Paris, I would say.", ["Paris"]) == 1
    assert words_until_facts("Well, it is red and blue. So there.", ["blue", "red"]) == 6
    assert words_until_facts("Three, that is 3", ["3|three"]) == 1
    assert words_until_facts("no idea at all", ["Paris"]) == 4


def test_the_fact_comes_first():
    """Prevents the demo's judge from rewarding short or whole answers that are wrong."""
    assert _prefer("Rome.", "After long thought I would say that it is Paris.") == -1
    assert _prefer("It is Paris and then", "Rome.", finish_reason="length") == 1


def test_then_whole_responses_then_the_more_direct():
    """Prevents an empty or endless response from winning because it is short, or cut."""
    assert _prefer("Paris", "It is Paris.", finish_reason="length") == -1
    assert _prefer("", "I do not know, sorry.") == -1
    assert _prefer(" \n", "I do not", chosen_finish_reason="length") == 0
    assert _prefer("Paris, which lies on the Seine and is large.", "It is Paris.") == 1
    assert _prefer("Not sure.", "I am really not sure.") == 1
    assert _prefer("It is Paris.", "I say Paris. Yes.") == 0


def test_the_baseline_counts_words_only():
    """Prevents "the shorter wins" from being anything else than that."""
    assert _prefer("Rome.", "It is Paris.", rule="shorter") == 1
    assert _prefer("a b", "c d", rule="shorter") == 0


def test_the_finish_reason_belongs_to_its_response():
    """Prevents the policy's end from being taken for the reference's."""
    sample = {"finish_reason": "length", "reference_finish_reason": "stop"}
    assert [finish_reason(sample, key) for key in ("policy", "reference", "chosen")] == ["length", "stop", None]


@pytest.mark.parametrize("facts", [None, [], "Paris", [""], ["|"], [3]])
def test_rows_without_facts_name_the_fix(facts):
    """Prevents an empty list of facts, which every response holds, from making every comparison one of length."""
    rows = [{"prompt": "p", "policy": "a", "chosen": "b", "facts": ["x"]}]
    rows.append(rows[0] | {"facts": facts})
    with pytest.raises(ValueError, match=r"1 of 2 samples have no `facts`.*sample 1.*everyday.*--offline shorter"):
        judge_by_rule(rows, load_rule("direct_answer"), "policy", "chosen", "prompt")


def test_a_rule_of_ones_own_by_path_and_by_name(tmp_path, monkeypatch):
    """Prevents users from having to edit the code for a rule; this one is the module's own example."""
    code = (
        "from scorers.rules import Rule\n\n\nclass MoreQuestions(Rule):\n    text = 'More question marks.'\n\n"
        "    def score(self, sample, key):\n        return sample[key].count('?')\n\n\nclass Mute(Rule):\n    pass\n"
        "\n\nclass Nan(MoreQuestions):\n    def score(self, sample, key):\n        return float('nan')\n"
    )
    (tmp_path / "my_rules.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": "p", "policy": "a??", "chosen": "b?"}]
    for name in ("my_rules.py:MoreQuestions", f"{tmp_path}/my_rules.py:MoreQuestions", "my_rules.MoreQuestions"):
        judged = judge_by_rule(rows, load_rule(name), "policy", "chosen", "prompt")
        assert [row.verdicts for row in judged] == [("candidate",)]
    with pytest.raises(ValueError, match="nan"):
        judge_by_rule(rows, load_rule("my_rules.Nan"), "policy", "chosen", "prompt")
    for name, message in {
        "my_rules.Mute": "has no `text`",
        "my_rules.py:Other": "no class `Other`",
        "other.py:Mute": "there is no file other.py",
        "other_rules.Mute": "No module named",
        "pathlib.Path": "inherits scorers.rules.Rule",
        "shortr": "did you mean `shorter`",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_rule(name)


def test_a_preference_that_is_none_is_refused():
    """Prevents a rule that returns a score difference from being read as a tie or a win."""

    class Difference(Rule):
        text = "x"

        def prefer(self, sample, first_key, second_key):
            return 0.3

    with pytest.raises(ValueError, match=r"gave 0\.3 for sample 0; it must be 1, 0 or -1"):
        judge_by_rule([{"prompt": "p", "policy": "a", "chosen": "b"}], Difference(), "policy", "chosen", "prompt")
