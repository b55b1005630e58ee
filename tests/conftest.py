"""For all tests: two threads, no hub, and a skip without a reason is a failure."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

NO_REASON = ("", "unconditional skip")


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
