"""One function `get_foo` per data set, and `load_dataset`, which calls the one that a config names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dataloaders.examples import Dataset
from dataloaders.resolve import did_you_mean, resolve

SPLITS = ("train", "test")
FOR_OTHERS = ("function", "n_examples", "weight")  # keys of a data set's YAML that the DataLoader reads


def load_dataset(
    name: str, split: str, function: str, strings: Sequence[str], options: Mapping[str, Any] | None = None
) -> Dataset:
    """One split of one data set.

    Args:
        name: the data set's name in `config/datasets`; it names the Dataset and stands in every error.
        split: "train" or "test".
        function: "get_foo" of this package, "package.module.get_foo" or "path/to/file.py:get_foo" of a user.
        strings: human_prefix, human_suffix, assistant_prefix and assistant_suffix.
        options: the rest of the data set's YAML. `test_fraction` is used here; what is None is left to the function's
            own default, and `name` is added for a function that takes it.

    A local `path` without `test_path` is split by a hash of the prompt: rows, used and dropped are this split's share.

    Raises:
        ValueError: a function that cannot be found or does not take an option, an unreadable row, an empty split.
    """
    if split not in SPLITS:
        raise ValueError(f"Data set {name}: the split must be train or test, not {split!r}.")
    get = find_function(function, name)
    options = {key: value for key, value in (options or {}).items() if key not in FOR_OTHERS}
    test_fraction = options.get("test_fraction") or 0.0
    if not 0 <= test_fraction < 1:
        raise ValueError(f"datasets.{name}.test_fraction must be at least 0 and below 1, not {test_fraction}.")
    dataset = get(split, *strings, **_accepted(get, function, {"name": name, **options}))
    dataset.name = name
    for example in dataset:
        example.dataset_name = name
    by_prompt = dataset.split_by_prompt
    if by_prompt is None:
        by_prompt = bool(options.get("path")) and not options.get("test_path")
    if by_prompt:
        dataset = dataset.split(split, test_fraction)
    if not len(dataset):
        raise ValueError(_empty(dataset, split, test_fraction if by_prompt else None))
    return dataset


def find_function(function: str, name: str = "NAME") -> Callable[..., Dataset]:
    """The function that `datasets.NAME.function` means; ValueError with "did you mean" when there is none."""
    try:
        found = resolve(function, __name__)
    except ValueError as error:
        raise ValueError(f"datasets.{name}.function: {error}") from error
    if not callable(found):
        raise ValueError(f"datasets.{name}.function: {function} is no function but {type(found).__name__}.")
    return found


def _accepted(get: Callable[..., Dataset], function: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that the function gets: those with a value, without what is not meant for it."""
    parameters = inspect.signature(get).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    given = {key: value for key, value in options.items() if value is not None}
    for key in ("name", "test_fraction"):
        if key not in parameters and not (takes_all and key == "name"):
            given.pop(key, None)
    unknown = [] if takes_all else [key for key in given if key not in parameters]
    if unknown:
        hint = did_you_mean(unknown[0], parameters)
        raise ValueError(
            f"datasets.{options['name']}.{unknown[0]}: {function} takes no option {unknown[0]!r}{hint}; "
            "add a parameter of that name to the function or set the key to null."
        )
    return given


def _empty(dataset: Dataset, split: str, test_fraction: float | None) -> str:
    reasons = ", ".join(f"{rows} x {reason}" for reason, rows in dataset.dropped.most_common())
    message = f"Data set {dataset.name}: the {split} split is empty ({dataset.rows} rows"
    message += f", dropped: {reasons})." if reasons else ")."
    if test_fraction is not None:
        message += (
            f" Its file is split by prompt with datasets.{dataset.name}.test_fraction={test_fraction}: "
            f"change that, or give datasets.{dataset.name}.test_path=FILE."
        )
    return message
