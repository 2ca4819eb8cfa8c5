"""A pytest plugin for OpenAI's suite: gives its clients another key, and writes down how each test ended.

The suite's conftest holds the keys that its clients send as constants; through the gateway they have to be the
project's. Nothing else of the suite is touched."""

import json
import os
import sys
from pathlib import Path

import pytest

_outcomes: dict[str, str] = {}


def pytest_collection_finish(session: pytest.Session) -> None:
    key = os.environ.get("SUITE_API_KEY")
    if key:
        conftest = sys.modules["tests.conftest"]
        conftest.api_key = conftest.admin_api_key = key  # type: ignore[attr-defined]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # Set-up, call and tear-down each report: the worst of them is the test's outcome.
    if report.when == "call" or report.outcome != "passed":
        _outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    Path(os.environ["SUITE_OUTCOMES"]).write_text(json.dumps(_outcomes))
