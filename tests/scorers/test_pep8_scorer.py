"""PEP 8: hand arithmetic, pycodestyle called directly, and what a cut-off or hostile text does."""

import io
import os
import random
import subprocess
import sys
from pathlib import Path

import pycodestyle
import pytest

from scorers.pep8 import NO_LINE, UNPARSABLE, PEP8Scorer, parsable
from scorers.scorer import EMPTY, NUL, SURROGATE, TOO_LONG, TOO_SLOW, Sample

ROOT = Path(__file__).parents[2]
OURS = [file for folder in ("scorers", "tests/scorers") for file in sorted((ROOT / folder).glob("[!_]*.py"))]

MESSY = '''\
import os,sys
class A( object ):
  """A docstring that is far too long for the seventy-nine columns that a line may have here."""
  def f(self,x):
    y=x [0]
    return {'a':1,
      'b' : 2}


def g ():
\tif x == None: return not x in y

def h(a, b):
    text = """one   \n  two
    three"""
    try:
        lambda_ = lambda: 0
    except:
        pass
    return f(a,
        b)
'''


@pytest.fixture(scope="module")
def scorer():
    return PEP8Scorer()


def direct(text: str) -> int:
    """What pycodestyle itself counts, in its default settings."""
    lines = io.StringIO(text).readlines()
    return pycodestyle.Checker(lines=lines, options=pycodestyle.StyleGuide(quiet=1).options).check_all()


def test_by_hand(scorer):
    """Prevents a score that is divided by something else than characters, or that a line gets of another line."""
    text = "x=1\ny = 2\nprint( y)\n"  # E225; nothing; E201: 2 violations in 4 + 6 + 10 characters
    assert scorer.score([Sample("ignored", text)]) == [2 / 20]
    segments = scorer.score_segments(text)
    assert [(one.start, one.end, one.score) for one in segments] == [(0, 4, 1 / 4), (4, 10, 0.0), (10, 20, 1 / 10)]
    (document,) = scorer.score_documents([text])
    assert document.score == pytest.approx((1 / 4 + 0 + 1 / 10) / 3) and document.flaw is None


def test_blank_lines_belong_to_the_line_before(scorer):
    """Prevents that good segments have more blank lines than the text has: these have no style by themselves."""
    text = "\n\nx=1\n \n\ny = 2\n\n\n\n\nz = 3\n\n"  # E225 and W293 in 7 characters, E303 of the line after
    segments = scorer.score_segments(text)
    assert [text[one.start : one.end] for one in segments] == ["\n\n", "x=1\n \n\n", "y = 2\n\n\n\n\n", "z = 3\n\n"]
    assert [one.score for one in segments] == [0.0, 2 / 7, 0.0, 1 / 7]
    assert scorer.score([Sample("", text)]) == [3 / len(text)]
    cut = scorer.score_segments("x=1\n\ny = (\n\n")  # a statement that the end cut off has no score
    assert [(one.start, one.end, one.score) for one in cut] == [(0, 5, 1 / 5), (5, 12, None)]


def test_every_violation_of_a_line_counts(scorer):
    """Prevents a report that counts each code once, as pycodestyle's own does when it prints."""
    assert scorer.check("x=1;y=2\n").violations == [4]  # E225 twice, E231 and E702
    assert scorer.check("x=1\ny=2\n").violations == [1, 1]


def test_as_pycodestyle_itself_counts(scorer):
    """Prevents another measure than PEP 8's: on real files and a messy one the sum is pycodestyle's own."""
    for text in [MESSY, *(file.read_text(encoding="utf-8") for file in OURS)]:
        assert sum(scorer.check(text).violations) == direct(text)
    assert direct(MESSY) > 20 and sum(direct(file.read_text(encoding="utf-8")) for file in OURS) > 100


def test_line_ends_do_not_matter(scorer):
    """Prevents a file of another system that is full of violations, and segments that do not cover it."""
    expected = scorer.check(MESSY).violations
    for end in ("\r\n", "\r"):
        text = MESSY.replace("\n", end)
        assert scorer.check(text).violations == expected
        assert "".join(text[one.start : one.end] for one in scorer.score_segments(text)) == text
    assert scorer.check("\ufeff" + MESSY).violations == expected
    assert len(scorer.score_segments("# a\u2028b\x0cc\nx = 1\n")) == 2  # what Python takes for no line end


def test_a_cut_adds_no_violation(scorer):
    """Prevents that samples which end at the length limit seem worse: at any cut no line has more than it has uncut."""
    texts = [MESSY, (ROOT / "scorers" / "samples.py").read_text(encoding="utf-8")]
    whole = [scorer.check(text).violations for text in texts]
    generator = random.Random(0)
    cuts = [(0, cut) for cut in range(1, len(MESSY))] + [(1, generator.randrange(len(texts[1]))) for _ in range(60)]
    scored = 0
    for number, cut in cuts:
        code = scorer.check(texts[number][:cut])
        assert code.flaw in (None, NO_LINE), (number, cut, code.flaw)
        if code.violations is not None:
            scored += 1
            # pycodestyle looks ahead too, and finds an E302 in the whole that it does not see in the cut text.
            assert all(map(int.__le__, code.violations, whole[number])), (number, cut)
    assert scored > 400


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\n\n\n", [0, 0, 0]),  # no W391
        ("x = 1\ny=2", [0]),  # no W292, and no E225 in a line that may go on
        ("x = 1\ny = [\n    1,\n", [0]),  # no E901
        ("x = 1 \n\n\ndef f():\n    # then\n", [1, 0, 0, 0, 0]),  # W291 stays
    ],
)
def test_ends_of_a_sample(text, expected, scorer):
    """Prevents violations that are of the cut and not of the code."""
    assert scorer.check(text).violations == expected


def test_what_is_open_at_the_end_has_no_score(scorer):
    """Prevents a score of 0 for lines that nobody checked."""
    segments = scorer.score_segments("x=1\ny = [\n  1,\nz")
    assert [one.score for one in segments] == [1 / 4, None, None, None]
    (document,) = scorer.score_documents(["x = '''\nabc\n"])
    assert (
        document.flaw == NO_LINE and document.score is None and [one.score for one in document.segments] == [None] * 2
    )


def test_why_a_sample_has_no_score(scorer, monkeypatch):
    """Prevents a sample that is said to be no Python, which is no reason: it would have been scored all the same."""
    broken = Sample("", "this is no code\n")
    assert scorer.score([broken])[0] > 0
    for text, reason in (("this is", NO_LINE), (" \n", EMPTY), ("a\0", NUL)):
        assert scorer.score([Sample("", text)]) == [None] and scorer.reason(Sample("", text)) == reason
    monkeypatch.setattr(scorer, "_seconds", 1e-9)
    slow = Sample("", "this is no code\n" * 20_000)
    assert scorer.score([slow]) == [None] and scorer.reason(slow) == TOO_SLOW


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        ("This is no code, is it?\nNo.\n", UNPARSABLE),
        ("print 'a'\nx = 1\n", UNPARSABLE),
        ("  x = 1\n", UNPARSABLE),
        ("x = (]\n", UNPARSABLE),
        ("(" * 5000 + "\n", UNPARSABLE),
        ("-" * 100_000 + "1\n", UNPARSABLE),
        ("x = " + "1" * 5000 + "\n", UNPARSABLE),
        ("x = 1", NO_LINE),
        ("", EMPTY),
        (" \n\t\n", EMPTY),
        ("x = 1\n\0y = 2\n", NUL),
        ("x = '\ud800'\n", SURROGATE),
        ("x = 1\n" * 200_000, TOO_LONG),
    ],
)
def test_flaws(text, flaw, scorer):
    """Prevents a perfect score for what is no Python, and a process that dies of it."""
    (document,) = scorer.score_documents([text])
    assert document.flaw == flaw and document.score is None
    score, other = scorer.score([Sample("", text), Sample("", "x=1\n")])
    assert other == 1 / 4 and (score > 0 if flaw == UNPARSABLE else score is None)
    assert "".join(text[one.start : one.end] for one in document.segments) == text


@pytest.mark.parametrize(
    ("text", "violations", "characters"),
    [
        ("x=1\nThis is no code\n", 2, 20),  # E225 and the error
        ("x=1\ny = (]\nz = 2\n", 2, 17),  # split into tokens it can be
        # E225; E111, E113; of another text from there on the error, E111, E113; E225
        ("x=1\ny = 2\n   z = 3\n w = 1\nv=1\n", 7, 30),
        ("x=1\ny = [)\nz = '''\nz=2\n w=3\nv= ]\n", 2, 33),  # E225, the error; what a string holds is no code
        ("  x = [\n)\nabc", 4, 10),  # E111, E113; E122, the error
    ],
)
def test_a_sample_that_is_no_python(text, violations, characters, scorer):
    """Prevents a score that few samples of a small model have, and one that prose has in common with perfect code."""
    (score,) = scorer.score([Sample("", text)])
    assert score == pytest.approx(violations / characters)


def test_slow_text_is_given_up():
    """Prevents a corpus that stops at one file: pycodestyle takes quadratic time over this line."""
    (document,) = PEP8Scorer(seconds=0.3).score_documents(["x =" + " " * 300_000 + "1\n"])
    assert document.flaw == TOO_SLOW and document.score is None


def test_code_is_never_run(tmp_path, scorer):
    """Prevents that a sample does what it says."""
    mark = tmp_path / "ran"
    text = f"open({str(mark)!r}, 'w').close()\nimport os\nos.system('touch {mark}')\n"
    assert scorer.check(text).violations is not None and not mark.exists()


def test_no_settings_from_outside(tmp_path, scorer):
    """Prevents scores that depend on a setup.cfg or tox.ini of the folder, or on the user's own settings."""
    settings = "[pycodestyle]\nmax_line_length = 20\nignore = E225\nmax_doc_length = 10\n"
    for name in ("setup.cfg", "tox.ini", "pycodestyle"):
        (tmp_path / name).write_text(settings)
    script = (
        "import sys; from scorers.pep8 import PEP8Scorer; s = PEP8Scorer(); print(s.identity);"
        "print(s.check(sys.stdin.read()).violations)"
    )
    settings = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=settings,
        input=MESSY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [scorer.identity, str(scorer.check(MESSY).violations)]


def test_settings_are_in_the_identity():
    """Prevents scores of two settings under one name."""
    assert PEP8Scorer(max_line_length=100).check("x = '" + "a" * 80 + "'\n").violations == [0]
    assert PEP8Scorer(ignore=["E225"]).check("x=1\n").violations == [0]
    made = [PEP8Scorer(), PEP8Scorer(max_line_length=100), PEP8Scorer(ignore=["E225"]), PEP8Scorer(ignore=[])]
    assert len({scorer.identity for scorer in made}) == 4
    assert f"pycodestyle={pycodestyle.__version__}" in made[0].identity


def test_parsable_tells_cut_from_wrong():
    """Prevents that a wrong text passes for one that was cut off."""
    assert [parsable(text) for text in ("x = 1\n", "def f():\n", "x = (1,\n", "try:\n    x\n")] == [
        True,
        None,
        None,
        None,
    ]
    assert [parsable(text) for text in ("def f(:\n", "x = 'a\n", "x = (1\ny = 2\n", "for\n")] == [False] * 4
