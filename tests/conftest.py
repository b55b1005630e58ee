"""For all tests: no hub, the same examples of properties every time, and a skip without a reason is a failure."""

import os

import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("fixed")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

LONGEST = (
    "test_readme", "test_golden", "test_sharding", "test_resume", "test_processes", "test_hosts", "test_torchrun",
    "test_makefile", "test_tokenization", "test_slurm", "test_multirun",
)  # fmt: skip
NO_REASON = ("", "unconditional skip")


def pytest_collection_modifyitems(items):
    """Puts files that take long first: a process that came to one at the end would work on while the others wait."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_xdist_auto_num_workers():
    """One process more than there are cores: tests wait for processes of theirs, for clocks and for disks."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A skipped test proves nothing, so it has to say why: `pytest.skip("why")`, `skipif(..., reason="why")`."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if reason.removeprefix("Skipped").lstrip(": ").strip() in NO_REASON:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} is skipped without a reason: say why."
    return report
