"""What texts look like, whatever they say: length, variety, repetition. Each figure with its 95 % interval.

A scorer may be pleased by empty or repeated text; these figures show it. Words are what whitespace separates. They are
pure functions of the texts, so the same samples give the same figures.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scorers.estimates import Z95, Estimate, mean_estimate, ratio_estimate, share_estimate

REFERENCES = 200
"""Self-BLEU compares each text with so many of the others, the first in their order."""

Units = Sequence[Any] | None
_NUMBERED = re.compile(r"(distinct|entropy|self_bleu)_([1-9])")
_LOGGED = {"distinct": "distinct-{}-grams", "entropy": "entropy-{}-grams", "self_bleu": "Self-BLEU-{}"}


@dataclass(frozen=True)
class NGrams:
    """The n-grams of texts, counted: gram `gram[i]` stands `count[i]` times in text `text[i]`.

    Attributes:
        text, gram, count: (m,) each, one entry for each different n-gram of each text.
        totals: n-grams of each text, repetitions counted (n,).
    """

    text: np.ndarray
    gram: np.ndarray
    count: np.ndarray
    totals: np.ndarray


def count_ngrams(texts: Sequence[str], size: int) -> NGrams:
    """The n-grams of words of each text; none crosses from one text into the next."""
    split = [text.split() for text in texts]
    known: dict[str, int] = {}
    words = np.array([known.setdefault(word, len(known)) for some in split for word in some], dtype=np.int64)
    owners = np.repeat(np.arange(len(texts)), [len(some) for some in split])
    grams = words
    for further in range(1, size):
        pairs = grams[:-1] * max(1, len(known)) + words[further:]
        grams = np.unique(pairs, return_inverse=True)[1]  # small numbers again, so that products never overflow
    whole = owners[: len(grams)] == owners[size - 1 :] if len(grams) else np.zeros(0, dtype=bool)
    text, gram = owners[: len(grams)][whole], grams[whole]
    both, count = np.unique(np.stack([text, gram], axis=1), axis=0, return_counts=True)
    totals = np.bincount(text, minlength=len(texts))
    return NGrams(both[:, 0], both[:, 1], count, totals)


def length(texts: Sequence[str], units: Units = None) -> Estimate:
    """Mean length in characters; bootstrap."""
    return mean_estimate([len(text) for text in texts], units)


def distinct(texts: Sequence[str], size: int, units: Units = None) -> Estimate:
    """Mean over texts of different n-grams / n-grams, as in Pretraining with Human Preferences; bootstrap. Li et al.
    2016 (arXiv 1510.03055, section 5), whose measure it is, take the n-grams of all texts together.

    Texts with fewer than n words have none and are left out; `count` says how many there were.
    """
    grams = count_ngrams(texts, size)
    has = grams.totals > 0
    if not has.any():
        raise ValueError(f"no text has {size} words.")
    shares = np.bincount(grams.text, minlength=len(texts))[has] / grams.totals[has]
    return mean_estimate(shares, None if units is None else [unit for unit, one in zip(units, has, strict=True) if one])


def entropy(texts: Sequence[str], size: int, units: Units = None) -> Estimate:
    """Entropy in nats of the n-grams of all texts together.

    With frequencies in the place of probabilities it is too low by an amount that falls with the number of samples:
    compare it at one number only. The interval is by linearization: dH/dC_g = -(log p_g + H) / N for the count C_g of
    gram g of N, summed over each unit. (A bootstrap would resample the bias as well, and miss the value itself.)
    """
    grams = count_ngrams(texts, size)
    counts = np.bincount(grams.gram, weights=grams.count)
    total = counts.sum()
    if not total:
        raise ValueError(f"no text has {size} words.")
    with np.errstate(divide="ignore"):
        logs = np.log(counts / total)
    value = float(-(counts[counts > 0] / total * logs[counts > 0]).sum())
    slopes = np.bincount(grams.text, weights=-grams.count * (logs[grams.gram] + value) / total, minlength=len(texts))
    if units is not None:
        numbers = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
        slopes = np.bincount([numbers[unit] for unit in units], weights=slopes)
    if len(slopes) < 2:
        return Estimate(value, None, None, len(texts))
    half = Z95 * float(np.sqrt((slopes**2).sum() * len(slopes) / (len(slopes) - 1)))
    return Estimate(value, max(0.0, value - half), value + half, len(texts))


def self_bleu_scores(texts: Sequence[str], size: int, references: int = REFERENCES) -> np.ndarray:
    """BLEU of each text (n,) against the first `references` of the others: how much alike they are (Zhu et al. 2018,
    arXiv 1802.01886, section 2).

    BLEU (Papineni et al. 2002) on words, uniform weights of the 1- to n-grams, brevity penalty by the closest length of
    a reference; a precision of 0 has 0.1 in its numerator (Chen and Cherry 2014, smoothing 1), without a common word
    it is 0.
    """
    count = len(texts)
    if count < 2:
        raise ValueError("Self-BLEU compares texts with each other: it needs two.")
    lengths = np.array([len(text.split()) for text in texts])
    logs, common = np.zeros(count), np.zeros(count)
    for order in range(1, size + 1):
        grams = count_ngrams(texts, order)
        matches = np.bincount(grams.text, weights=_clipped(grams, references), minlength=count)
        common = matches if order == 1 else common
        logs += np.log(np.where(matches > 0, matches, 0.1) / np.maximum(grams.totals, 1)) / size
    closest = _closest_lengths(lengths, references)
    penalty = np.exp(np.minimum(0.0, 1 - closest / np.maximum(lengths, 1)))
    return np.where(common > 0, penalty * np.exp(logs), 0.0)


def self_bleu(texts: Sequence[str], size: int, units: Units = None) -> Estimate:
    """The mean of `self_bleu_scores`; bootstrap over the texts, the references held as they are."""
    return mean_estimate(self_bleu_scores(texts, size), units)


def _clipped(grams: NGrams, references: int) -> np.ndarray:
    """Each entry's count, at most the largest that one of the text's references has."""
    limits = np.zeros(len(grams.text))
    # One of the first texts is no reference of itself, so that the one behind them takes its place.
    for own, last in ((grams.text < references, references + 1), (grams.text >= references, references)):
        there = np.flatnonzero(grams.text < last)
        order = there[np.lexsort((-grams.count[there], grams.gram[there]))]
        size = int(grams.gram.max(initial=-1)) + 1
        first, second, owner = np.zeros(size), np.zeros(size), np.full(size, -1)
        gram = grams.gram[order]
        begins = np.flatnonzero(np.diff(gram, prepend=-1))
        first[gram[begins]], owner[gram[begins]] = grams.count[order[begins]], grams.text[order[begins]]
        after = begins + 1
        after = after[(after < len(gram)) & (gram[np.minimum(after, len(gram) - 1)] == gram[begins])]
        second[gram[after]] = grams.count[order[after]]
        most = np.where(owner[grams.gram] == grams.text, second[grams.gram], first[grams.gram])
        limits[own] = most[own]
    return np.minimum(grams.count, limits)


def _closest_lengths(lengths: np.ndarray, references: int) -> np.ndarray:
    """For each text the length of its references that is nearest to its own; of two as near the shorter."""
    candidates = lengths[: references + 1]
    keys = np.abs(candidates[None] - lengths[:, None]) * (1.0 + lengths.max()) + candidates[None]
    own = np.arange(len(candidates))
    keys[own, own] = np.inf
    keys[references:, references:] = (
        np.inf
    )  # a text that is none of the first has `references` of them without this one
    return candidates[keys.argmin(axis=1)]


def lines_of(text: str) -> list[str]:
    """The lines of a text; what stands behind its last newline is one where it is not empty."""
    lines = text.split("\n")
    return lines[:-1] if not lines[-1] else lines


def blank_lines(texts: Sequence[str], units: Units = None) -> Estimate:
    """Share of all lines that hold nothing but whitespace; bootstrap."""
    lines = [lines_of(text) for text in texts]
    return ratio_estimate([sum(not line.strip() for line in some) for some in lines], [*map(len, lines)], units)


def repeated_lines(texts: Sequence[str], units: Units = None) -> Estimate:
    """Share of the lines with something in them that their own text has had already, indentation aside; bootstrap."""
    counted = [Counter(line.strip() for line in lines_of(text) if line.strip()) for text in texts]
    totals = [counts.total() for counts in counted]
    repeats = [total - len(counts) for total, counts in zip(totals, counted, strict=True)]
    return ratio_estimate(repeats, totals, units)


def parsable(texts: Sequence[str], units: Units = None) -> Estimate:
    """Share of the texts whose complete lines are Python, or its beginning; Wilson's interval. Nothing is executed."""
    return share_estimate([is_parsable(text) for text in texts], units)


def is_parsable(text: str) -> bool:
    """Whether a text's complete lines are Python as far as they go: a block that was cut off is no error.

    What stands behind the last newline may be half a token and is left out, unless it is all there is.
    """
    kept = text[: text.rindex("\n") + 1] if "\n" in text else text
    if not kept.strip():
        return False
    flags = ast.PyCF_ONLY_AST | _ALLOW_INCOMPLETE_INPUT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SyntaxWarning: "\d", `x is 1`
        try:
            compile(kept, "<sample>", "exec", flags)
        except SyntaxError as error:
            return "incomplete input" in str(error)
        except (ValueError, RecursionError, MemoryError, OverflowError):  # NUL, lone surrogates, nesting
            return False
    return True


_ALLOW_INCOMPLETE_INPUT = 0x4000  # what the module codeop passes: an unfinished block is told from a wrong one

_PLAIN: dict[str, Callable[[Sequence[str], Units], Estimate]] = {
    "length": length,
    "blank_lines": blank_lines,
    "repeated_lines": repeated_lines,
    "parsable": parsable,
}
OF_WHOLE_TEXTS = ("parsable",)
"""What is of a completion with its prompt, where the two are scored together; the others are of completions alone."""
NAMES = (*_PLAIN, *(f"{kind}_N" for kind in _LOGGED))
"""What there is; N is 1 to 9."""


def text_metric(name: str) -> tuple[str, Callable[[Sequence[str], Units], Estimate]]:
    """What a metric is called where it is logged, and the function of (texts, units) that gives it.

    Args:
        name: as in a config, `length` or `distinct_2`.

    Raises:
        ValueError: there is no such metric. The function raises it where no text has what is measured.
    """
    if name in _PLAIN:
        return name, _PLAIN[name]
    match = _NUMBERED.fullmatch(name)
    if match is None:
        raise ValueError(f"there is no metric {name!r}: choose of {', '.join(NAMES)} (N: 1 to 9).")
    kind, size = {"distinct": distinct, "entropy": entropy, "self_bleu": self_bleu}[match[1]], int(match[2])
    return _LOGGED[match[1]].format(size), lambda texts, units=None: kind(texts, size, units)
