"""A pytest plugin for OpenAI's suite: gives its clients another key, and writes down how each test ended.

The suite's conftest holds the keys that its clients send as constants; through the gateway they have to be the
project's. Nothing else of the suite is touched. Its clients forgive much (a missing content type, a changed header),
so every answer is written down too, as the HTTP library hands it to the client."""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai._base_client import AsyncAPIClient, SyncAPIClient

NOT_COMPARED = {"connection", "date", "keep-alive", "transfer-encoding"}
"""Headers of one connection, and of the time."""

_outcomes: dict[str, str] = {}
_answers: dict[str, list[Any]] = {}


def pytest_collection_finish(session: pytest.Session) -> None:
    key = os.environ.get("SUITE_API_KEY")
    if key:
        conftest = sys.modules["tests.conftest"]
        conftest.api_key = conftest.admin_api_key = key  # type: ignore[attr-defined]
    for client in (SyncAPIClient, AsyncAPIClient):
        client._process_response = _recording(client._process_response)  # type: ignore[method-assign]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # Set-up, call and tear-down each report: the worst of them is the test's outcome.
    if report.when == "call" or report.outcome != "passed":
        _outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    written = {test: [outcome, _answers.get(test, [])] for test, outcome in _outcomes.items()}
    Path(os.environ["SUITE_OUTCOMES"]).write_text(json.dumps(written))


def _recording(process: Callable[..., Any]) -> Callable[..., Any]:
    """The client's method that every answer passes, with a look at the answer."""

    def look_first(self: object, *, response: httpx2.Response, **others: Any) -> Any:
        test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
        _answers.setdefault(test, []).append(_seen(response))
        return process(self, response=response, **others)

    return look_first


def _seen(response: httpx2.Response) -> list[Any]:
    ignored = NOT_COMPARED
    try:
        body = hashlib.sha256(response.content).hexdigest()
    except httpx2.ResponseNotRead:
        body = "a stream"
        # Where Ratchet asks for a stream's usage, it asks for the stream uncompressed, to take the usage out again.
        ignored = NOT_COMPARED | {"content-encoding"}
    headers = sorted(
        (name.lower(), value)
        for name, value in response.headers.multi_items()
        if name.lower() not in ignored and not name.lower().startswith("x-ratchet-")
    )
    return [
        response.request.method,
        response.request.url.raw_path.decode(),
        response.status_code,
        headers,
        body,
    ]
