"""Python code by the style guide PEP 8: violations by pycodestyle, a character. The code is never executed."""

from __future__ import annotations

import ast
import codeop
import io
import itertools
import sys
import tokenize
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scorers.limits import TooSlow, time_limit
from scorers.lines import line_ends, with_newlines
from scorers.scorer import TOO_SLOW, Sample, ScoredText, Scorer, Segment, need_package, unscored

UNPARSABLE, NO_LINE = "unparsable", "no complete line"
DEFAULT_IGNORE = ("E121", "E123", "E126", "E226", "E24", "E704", "W503", "W504")
"""pycodestyle's own default, written out: it holds whatever version is installed."""
OF_THE_END = ("W292", "W391")
"""No newline, or a blank line, at the end of the file. Where a sample was cut they say nothing of its code."""
_RULES = 3  # of this module; in the identity


@dataclass(frozen=True)
class CheckedCode:
    """What pycodestyle says of a text.

    Attributes:
        ends: for each line, where it ends in the text.
        violations: for each line that could be checked, how many violations begin in it; the lines behind these belong
            to a statement that the text's end cut off. None where the text is flawed.
    """

    ends: list[int]
    violations: list[int] | None
    flaw: str | None = None

    @property
    def checked(self) -> int:
        """Characters that were checked."""
        return self.ends[len(self.violations) - 1] if self.violations else 0


class PEP8Scorer(Scorer):
    """Violations of PEP 8 a character, of the lines that could be checked.

    Segments are lines, each with the blank ones behind it, which have no style by themselves: were they segments, text
    that is to have no bad ones would have more of them.

    A text may be a sample that was cut anywhere. So a last line without a line end is not scored, nor is a statement
    that is still open at the end (a bracket, a string, a `def` without a body), and W292 and W391, which are about a
    file's end, are not counted: what is cut off never adds a violation. A text that is no Python, and would not be if
    it went on, is flawed as a document. A sample has a score nevertheless, since small models write little else: its
    whole lines are checked, those from an indentation on that fits nothing before it as another text, and each
    place where it begins anew is one violation, as is a syntax error without one.

    Settings come from the arguments alone: no setup.cfg, tox.ini or pycodestyle file of the user or of the folder.

    Args:
        max_line_length: of E501.
        ignore: codes, or their beginnings, that are not counted; None: pycodestyle's default.
        max_characters: a longer text is flawed ("too long").
        seconds: of processor time that one text may take; else it is flawed ("too slow").
    """

    name = "pep8"
    bounds = (0.0, float("inf"))

    def __init__(
        self,
        max_line_length: int = 79,
        ignore: Sequence[str] | None = None,
        max_characters: int = 1_000_000,
        seconds: float = 60.0,
    ):
        need_package("pycodestyle", "pycodestyle", "scorer=pep8")
        import pycodestyle

        self.max_characters = max_characters
        self._seconds = seconds
        self._ignore = tuple(DEFAULT_IGNORE if ignore is None else ignore)
        self._checker = pycodestyle.Checker
        self._options = pycodestyle.StyleGuide(
            max_line_length=max_line_length,
            ignore=(*self._ignore, *OF_THE_END),
            select=(),
            max_doc_length=None,
            hang_closing=False,
            indent_size=4,
            verbose=0,
            quiet=1,
        ).options
        self._report = _counting(pycodestyle.BaseReport)
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        self._identity = (
            f"pep8 rules={_RULES} pycodestyle={pycodestyle.__version__} python={python} "
            f"max_line_length={max_line_length} ignore={','.join(self._ignore)} max_characters={max_characters}"
        )

    @property
    def identity(self) -> str:
        return self._identity

    def score_texts(self, texts: Sequence[str]) -> list[float | None]:
        """Violations a character of what could be checked; None where nothing could."""
        scores: list[float | None] = []
        for code in (self.check(text, strict=False) for text in texts):
            scores.append(sum(code.violations) / code.checked if code.violations else None)
        return scores

    def score_documents(self, texts: Sequence[str]) -> list[ScoredText]:
        return [self._score_document(text) for text in texts]

    def _score_document(self, text: str) -> ScoredText:
        flaw = self.flaw_of(text)
        if flaw is not None:
            return unscored(text, flaw)
        code = self.check(text)
        counts = [] if code.violations is None else code.violations
        starts = [0, *code.ends[:-1]]
        segments: list[Segment] = []
        found: int | None = None  # violations of the last segment so far
        for start, end, count in itertools.zip_longest(starts, code.ends, counts):
            if segments and (count is None) == (found is None) and not text[start:end].strip():
                start = segments.pop().start
                count = None if count is None or found is None else found + count
            segments.append(Segment(start, end, None if count is None else count / (end - start)))
            found = count
        return ScoredText(tuple(segments), code.flaw)

    def reason(self, sample: Sample) -> str:
        """Why `score` gives none for a sample: it checks samples that are no Python too."""
        text = self.text_of(sample)
        return self.flaw_of(text) or self.check(text, strict=False).flaw or NO_LINE

    def check(self, text: str, strict: bool = True) -> CheckedCode:
        """The violations of a text that has none of the flaws that `flaw_of` finds.

        Args:
            strict: what is no Python is flawed; False: it is checked as far as it can be, with a violation for each
                place where it begins anew.
        """
        ends = line_ends(text)
        try:
            with time_limit(self._seconds):
                return self._check(text, ends, strict)
        except TooSlow:
            return CheckedCode(ends, None, TOO_SLOW)

    def _check(self, text: str, ends: list[int], strict: bool) -> CheckedCode:
        lines = with_newlines(text, ends)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
        if not lines:
            return CheckedCode(ends, None, NO_LINE)
        lines[0] = lines[0].removeprefix("\ufeff")
        parses = parsable("".join(lines))
        if parses is False and strict:
            return CheckedCode(ends, None, UNPARSABLE)
        if parses is None:
            lines, parses = lines[: _unfinished(lines)], True
        if not lines:
            return CheckedCode(ends, None, NO_LINE)
        try:
            found = self._violations(lines) if parses else self._violations_anyway(lines)
        except Exception as error:  # it was not written for hostile code
            return CheckedCode(ends, None, f"pycodestyle failed ({type(error).__name__})")
        errors = sum(code.startswith("E9") for _, code in found)  # its tokenizer is stricter than the parser
        if errors and strict:
            return CheckedCode(ends, None, UNPARSABLE)
        counts = [0] * len(lines)
        for number, _ in found:
            counts[min(max(number, 1), len(lines)) - 1] += 1
        if parses is False and not errors:
            counts[-1] += 1
        return CheckedCode(ends, counts)

    def _violations_anyway(self, lines: list[str]) -> list[tuple[int, str]]:
        """The same of a text that is no Python, with an E901 where it begins anew."""
        found: list[tuple[int, str]] = []
        place = 0
        while place < len(lines):
            misfit = _misfit(lines[place:])
            some = self._violations(lines[place : place + misfit]) if misfit else []
            found += [(place + number, code) for number, code in some if not code.startswith("E9")]
            place += max(misfit, 1)
            if place < len(lines):
                found.append((place + 1, "E901"))
        return found

    def _violations(self, lines: list[str]) -> list[tuple[int, str]]:
        """(line number from 1, code) of each."""
        report = self._report(self._options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._checker(lines=list(lines), options=self._options, report=report).check_all()
        return report.found


def _counting(base: type) -> type:
    class Report(base):  # type: ignore[misc, valid-type]
        """Keeps (line number from 1, code) of every violation."""

        def __init__(self, options: Any):
            super().__init__(options)
            self.found: list[tuple[int, str]] = []

        def error(self, line_number: int, offset: int, text: str, check: Any) -> str | None:
            code = super().error(line_number, offset, text, check)
            if code:
                self.found.append((line_number, code))
            return code

    return Report


def parsable(source: str) -> bool | None:
    """Whether a text is Python; None where it is not, but could be if it went on. Nothing is executed or compiled."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes such as "\d"
            compile(source, "<text>", "exec", ast.PyCF_ONLY_AST | codeop.PyCF_ALLOW_INCOMPLETE_INPUT, dont_inherit=True)
    except SyntaxError as error:
        return None if error.msg == "incomplete input" else False
    except (ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True


def _misfit(lines: list[str]) -> int:
    """The first line (from 0) whose indentation fits none before it; their number if there is none."""
    try:
        for _ in tokenize.generate_tokens(io.StringIO("".join(lines)).readline):
            pass
    except tokenize.TokenError:  # a bracket or string that is never closed
        pass
    except SyntaxError as error:
        return min((error.lineno or 1) - 1, len(lines))
    return len(lines)


def _unfinished(lines: list[str]) -> int:
    """The number of the line (from 0) where the statement begins that is open at the end; their number if none is."""
    ends = [0]
    try:
        for token in tokenize.generate_tokens(io.StringIO("".join(lines)).readline):
            if token.type == tokenize.NEWLINE:
                ends.append(token.end[0])
    except (tokenize.TokenError, SyntaxError):
        pass
    else:
        return len(lines)
    # Comments and blank lines between two statements are whole.
    first = ends[-1]
    while first < len(lines) and (not lines[first].strip() or lines[first].lstrip().startswith("#")):
        first += 1
    return first
