"""The page: one file, whole, safe whatever a model said, and the command that writes it."""

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.curves import draw_curves, points
from reports.inputs import Run, read_run
from reports.markup import escape
from reports.page import main
from reports.responses import FIRST, marked
from tests.reports.run_files import sample, write_files

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</td></table></main><h1>owned",
    "' onmouseover='alert(1)",
    "<!-- \x00 \x1b[31m \u202e right to left \ud800",
    "]]></style><style>*{display:none}",
    "&lt;b&gt; &amp; <b>bold</b> https://example.org/x.png",
]


class Reader(HTMLParser):
    """What a browser would see: tags, attributes, and the text outside of <style>."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "img", "source", "col", "line", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes another element"

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def page_of(folder, samples=None, *more):
    arguments = write_files(folder, samples)
    assert main([*arguments, *more]) == 0
    return (folder / "out" / "report.html").read_text(encoding="utf-8")


def test_a_hostile_response_stays_text(tmp_path):
    """Prevents a response that runs a script, loads a picture or breaks the page; prompts, facts, topics likewise."""
    ordinary = Reader(page_of(tmp_path / "ordinary"))
    texts = (HOSTILE * 3)[:20]
    samples = [
        sample(number, prompt=f"{number} {text}", policy=text, reference=text[::-1], topic=f"{text[:12]}", facts=[text])
        for number, text in enumerate(texts)
    ]
    page = page_of(tmp_path / "hostile", samples, "--about", HOSTILE[0])
    reader = Reader(page)
    assert set(reader.tags) <= set(ordinary.tags)
    assert not reader.open
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    for text in HOSTILE:
        seen = re.sub("[\x00-\x08\x1b\ud800]", "\ufffd", text)
        assert reader.text.count(seen) >= 2, text
    assert "default-src 'none'" in page


@given(st.text())
def test_escaped_text_comes_back(text):
    """Prevents text that a browser reads otherwise than it was written, also as an attribute."""
    reader = Reader(f'<p title="{escape(text)}">{escape(text)}</p>')
    expected = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)
    assert (reader.text, dict(reader.attributes)["title"]) == (expected, expected)
    escape(text).encode("utf-8")


@given(
    st.lists(st.sampled_from(["milk", "<i>", "5", "&", " ", "cream 5", '"'])), st.sampled_from(["milk|cream", "5", "&"])
)
def test_marking_facts_loses_nothing(pieces, fact):
    """Prevents a mark that swallows or doubles part of a response, or lets a tag through."""
    text = "".join(pieces)
    html = marked(text, [fact, "milk", "cream 5"])
    reader = Reader(html)
    assert reader.text == text and set(reader.tags) <= {"mark"}


def test_one_file_holds_everything(tmp_path):
    """Prevents a report that is empty once it has been sent to somebody: nothing is loaded from anywhere."""
    reader = Reader(page_of(tmp_path))
    links = [value for name, value in reader.attributes if name in ("src", "srcset", "href", "data", "action")]
    assert links and all(value.startswith("data:image/png;base64,") for value in links)
    assert "script" not in reader.tags and "link" not in reader.tags


def test_what_the_page_must_say(tmp_path):
    """Prevents a report without one of its parts, or a number without its interval."""
    page = Reader(page_of(tmp_path, None, "--about", "The data teaches milk.")).text
    for words in (
        "tiny before and after KTO",
        "48 examples of the data set everyday in 2.0 minutes",
        "The data teaches milk.",
    ):
        assert words in page
    for words in ("Words of direct_answer.", "Words of shorter.", "32 held-out pairs", "16 won, 1 tied, 3 lost"):
        assert words in page
    assert re.search(r"its win rate is 82\.5 %, with a 95 % interval from \d+\.\d to \d+\.\d %", page)
    assert "10 learned, 0 lost" in page and "2 responses" in page and "temperature 0.7" in page


def test_examples_are_not_chosen(tmp_path):
    """Prevents cherry-picking: the table has the first prompts of the file in its order, the others follow folded."""
    page = page_of(tmp_path)
    table = page[page.index("Examples in order") :]
    shown, rest = table.split("<details>")[0], table.split("<details>")[1]
    assert re.findall(r"Question (\d+)\?", shown) == [str(number) for number in range(FIRST)]
    assert re.findall(r"Question (\d+)\?", rest) == [str(number) for number in range(FIRST, 20)]
    assert FIRST >= 10 and "Not chosen: the first prompts in the order" in table
    side = page[page.index("Side by side") : page.index("Examples in order")]
    assert re.findall(r"Question (\d+)\?", side) == ["0", "1", "2"]  # the first of each topic


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        (["candidate"] * 18 + ["tie"] * 2, "is preferred"),
        (["baseline"] * 18 + ["tie"] * 2, "is not preferred"),
        (["candidate"] * 11 + ["baseline"] * 9, "cannot be told from the other"),
    ],
)
def test_the_words_claim_what_the_interval_allows(verdicts, words, tmp_path):
    """Prevents a page that calls 55 % of 20 prompts a win."""
    assert main(write_files(tmp_path, verdicts=verdicts)) == 0
    assert words in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_curves_are_pictures_with_words(tmp_path):
    """Prevents a broken image, a chart that only sighted people can read, and one colour scheme for light and dark."""
    from PIL import Image

    write_files(tmp_path)
    curves = draw_curves(read_run(tmp_path / "run"))
    assert [curve.panel.title for curve in curves] == [
        "Loss",
        "Rewards",
        "Reward margin",
        "Pair accuracy",
        "Reference point of the loss, nats",
    ]
    corners = []
    for picture in (curves[0].light, curves[0].dark):
        image = Image.open(io.BytesIO(base64.b64decode(picture)))
        assert image.size == (840, 552)
        corners.append(sum(image.convert("RGB").getpixel((0, 0))))
    assert corners[0] > 700 and corners[1] < 150
    assert "loss in training: from 0.48 to 0.44; loss on held-out data: from 0.5 to 0.4" in curves[0].alt


def test_points_leave_out_what_is_no_value():
    """Prevents a pair accuracy of 0 % before training, where all rewards are 0."""
    start = {"split": "eval", "rewards_eval/accuracies": 0.0, "rewards_eval/margins": 0.0, "counters/examples": 0}
    end = {"split": "eval", "rewards_eval/accuracies": 0.0, "rewards_eval/margins": -0.1, "counters/examples": 32}
    run = Run({}, [start, {"split": "train", "loss/train": 1.0, "counters/examples": 16}, end], {})
    assert points(run, "eval", "rewards_{split}/accuracies") == [(32, 0.0)]
    assert points(run, "train", "rewards_{split}/accuracies") == []


@pytest.mark.parametrize(("uses_reference", "shown"), [(True, [32]), (False, [0, 32])])
def test_accuracies_begin_with_the_training(uses_reference: bool, shown: list[int], tmp_path):
    """Prevents a curve from 3 %, by what bfloat16 rounds apart, and a start that is left out without a reference."""
    config = {"loss": {"use_reference_model": uses_reference}}
    names = ("accuracies", "unpaired_accuracies", "margins")
    records = [
        {"split": split, "counters/updates": updates, "counters/examples": examples}
        | {f"rewards_{split}/{name}": 0.03 for name in names}
        for split, updates, examples in (("eval", 0, 0), ("train", 1, 0), ("train", 2, 32), ("eval", 4, 32))
    ]
    run = Run(config, records, {})
    for split in ("train", "eval"):
        for name in names[:2]:
            assert [examples for examples, _ in points(run, split, f"rewards_{{split}}/{name}")] == shown
        assert [examples for examples, _ in points(run, split, "rewards_{split}/margins")] == [0, 32]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("run/metrics.jsonl", "", "is empty"),
        ("run/metrics.jsonl", '{"split": "train"}\n{"spl', "line 2: not valid JSON"),
        ("run/config.yaml", None, r"has no config\.yaml"),
        ("demo.json", "{", "not valid JSON"),
        ("demo.json", '{"samples": []}', "holds no samples.*mode=sample"),
        ("demo.json", '{"samples": [{"prompt": "a", "policy": "b"}]}', "no `reference`.*sample_reference=true"),
        ("demo.json", None, "cannot be read"),
        ("results.jsonl", "", r"no result compares policy with reference.*compare\.py"),
        ("judgments.csv", "a,b\n1,2\n", "lacks a column"),
    ],
)
def test_bad_input_is_one_line_with_the_fix(file, content, message, tmp_path, capsys):
    """Prevents a traceback, and an old report that is taken for the new one."""
    arguments = write_files(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content, encoding="utf-8")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1
    assert not (tmp_path / "out" / "report.html").exists()


def test_prompts_may_be_messages(tmp_path):
    """Prevents a report that only knows single questions."""
    samples = [sample(n, prompt=[{"role": "user", "content": f"Question {n}?"}]) for n in range(20)]
    assert "user: Question 3?" in page_of(tmp_path, samples)


def test_reports_need_no_torch(tmp_path):
    """Prevents a report that takes as long to start as training: no heavy library, none of our other packages."""
    arguments = json.dumps(write_files(tmp_path))
    program = (
        f"import sys; from reports.page import main; code = main({arguments}); "
        "heavy = {'scorers', 'models', 'dataloaders', 'trainers', 'launch', 'torch', 'transformers'} & {*sys.modules}; "
        "sys.exit(str(heavy) if heavy else code)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
