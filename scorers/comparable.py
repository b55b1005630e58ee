"""Samples files that are compared together: one baseline, and the same prompts of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from scorers.samples import Samples, choose_prompts, finish_reason, prompt_text, read_samples

Keys = tuple[str, str, str]
"""Of the responses of candidate and baseline, and of the prompt."""


def read_comparable(
    paths: Sequence[str], keys: Keys, baseline_path: str | None, maximum: int | None, seed: int
) -> tuple[list[Samples], Keys]:
    """What is judged of some files, and the keys of candidate, baseline and prompt in it.

    Args:
        baseline_path: a file whose responses are the baseline; None for those in the files.
        maximum, seed: see `choose_prompts`; of several files prompts are chosen that all of them have.

    Raises:
        ValueError: a file cannot be read (see `read_samples`), or several have no prompt or not one baseline in common.
    """
    candidate, key, history = keys
    if baseline_path is None:
        read = [read_samples(path, (candidate, key), history) for path in paths]
    else:
        baseline = read_samples(baseline_path, (key,), history)
        name = f"{baseline.exp_name}.{key}"
        read = [
            _with_baseline(read_samples(path, (candidate,), history), path, baseline, (key, name), history)
            for path in paths
        ]
        key = name
    shared = _shared_prompts(read, paths, key, history) if len(read) > 1 else None
    chosen = [
        dataclasses.replace(samples, rows=choose_prompts(samples.rows, history, maximum, seed, shared))
        for samples in read
    ]
    return chosen, (candidate, key, history)


def _with_baseline(samples: Samples, path: str, baseline: Samples, keys: tuple[str, str], history_key: str) -> Samples:
    """Samples with the responses that another file has to their prompts, and why these ended.

    Args:
        path: of the samples, for messages.
        keys: of the responses in `baseline`, of which the first to each prompt is taken, and here.

    Raises:
        ValueError: when it lacks a prompt.
    """
    key, name = keys
    responses: dict[str, dict[str, str | None]] = {}
    for row in baseline.rows:
        response = {name: row[key], f"{name}_finish_reason": finish_reason(row, key)}
        responses.setdefault(prompt_text(row[history_key]), response)
    lacking = [row for row in samples.rows if prompt_text(row[history_key]) not in responses]
    if lacking:
        raise ValueError(
            f"{len(lacking)} of the {len(samples.rows)} samples of {path} have a prompt to which the baseline file "
            f"({baseline.exp_name}) has no response: sample both for the same prompts (++n_samples=null takes all)"
        )
    rows = [{**row, **responses[prompt_text(row[history_key])]} for row in samples.rows]
    return dataclasses.replace(samples, rows=rows)


def _shared_prompts(samples: Sequence[Samples], paths: Sequence[str], baseline_key: str, history_key: str) -> list[str]:
    """The prompts that all of several files have, with one baseline to compare with.

    Args:
        paths: of the files, for messages.

    Raises:
        ValueError: there are none; two files have different responses under `baseline_key` to one of them.
    """
    texts: list[dict[str, set[str]]] = []
    for one in samples:
        texts.append({})
        for row in one.rows:
            texts[-1].setdefault(prompt_text(row[history_key]), set()).add(row[baseline_key])
    first, *others = texts
    shared = [prompt for prompt in first if all(prompt in other for other in others)]
    if not shared:
        raise ValueError(
            "no prompt is in all of these files: sample them for the same ones (++n_samples=null takes all)"
        )
    for path, other in zip(paths[1:], others, strict=True):
        differing = sum(first[prompt] != other[prompt] for prompt in shared)
        if differing:
            raise ValueError(
                f"{paths[0]} and {path} have different responses under `{baseline_key}` to {differing} of the "
                f"{len(shared)} prompts that all files share, and a ranking needs one baseline: name one file that has "
                "it by -bf, or sample the reference of all from one model with ++sample_reference=true ++temperature=0"
            )
    return shared
