"""What the data set tests share: rows written to files, and a hub that serves real `datasets` objects."""

import json

import pytest
import yaml

from dataloaders.datasets import load_dataset
from dataloaders.datasets.everyday import DATA

STRINGS = ("<U>", "</U>", "<A>", "</A>")
CONFIG = DATA.parent / "config" / "datasets"


class Sources:
    """Writes rows to files; loads data sets from them or from the hub, with the options of the data set's own YAML."""

    strings = STRINGS

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch = folder, monkeypatch
        self.asked = []

    def file(self, rows, name="rows.jsonl"):
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    def options(self, name, **changes):
        values = yaml.safe_load((CONFIG / f"{name}.yaml").read_text(encoding="utf-8"))
        unknown = set(changes) - set(values)
        assert not unknown, f"{name}.yaml has no {unknown}"
        return values | changes

    def load(self, name, split="train", **changes):
        options = self.options(name, **changes)
        return load_dataset(name, split, options["function"], STRINGS, options)

    def load_local(self, rows, **changes):
        """The data set `local` on these rows, none of them held out."""
        return self.load("local", path=self.file(rows), **{"test_fraction": 0.0} | changes)

    @staticmethod
    def account(dataset):
        """All that two equal data sets have in common."""
        assert dataset.rows == dataset.used + sum(dataset.dropped.values())
        assert dataset.used == sum(example.rows for example in dataset)
        return dataset.rows, dataset.used, dict(dataset.dropped), list(dataset)

    def serve(self, splits):
        """Makes `datasets.load_dataset` answer with {split: rows}, as the hub does, and notes what it is asked for."""
        import datasets

        def load(path, name=None, data_dir=None, data_files=None, split=None, revision=None):
            asked = {"path": path, "name": name, "data_dir": data_dir, "data_files": data_files}
            self.asked.append(asked | {"split": split, "revision": revision})
            if split not in splits:
                raise ValueError(f'Unknown split "{split}". Should be one of {list(splits)}.')
            return datasets.Dataset.from_list(splits[split])

        self.monkeypatch.setattr(datasets, "load_dataset", load)


@pytest.fixture
def sources(tmp_path, monkeypatch):
    return Sources(tmp_path, monkeypatch)
