"""The API-resource tests of OpenAI's own Python package, run against a mock provider and through the gateway.

The tests come from the package's source distribution and the mock is `@stdy/cli`, which answers from an OpenAPI
document (`document.py`); both are fetched for the check and are no part of the product. The same tests, in one
process each time, directly and through: whatever ends differently is the gateway's doing."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conformance import packages
from tests.conformance.product import Product, answers, free_port, wait_until

HERE = Path(__file__).resolve().parent

NAMED = (
    "chat/test_completions.py",
    "responses/",
    "test_responses.py",
    "test_embeddings.py",
    "test_models.py",
    "test_completions.py",
    "test_moderations.py",
    "test_files.py",
    "test_batches.py",
    "test_images.py",
    "audio/",
)
"""The files whose tests all have to pass; of the others, the same set as directly."""


@dataclass(frozen=True)
class Ending:
    """How a test ended, and every answer that its client got: method, path, status, headers, digest of the body."""

    outcome: str
    answers: Sequence[Any]


Outcomes = Mapping[str, Ending]


@dataclass(frozen=True)
class Comparison:
    """How the same tests ended directly and through the gateway."""

    direct: Outcomes
    through: Outcomes

    def of_named_files(self) -> "Comparison":
        return Comparison(_named(self.direct), _named(self.through))

    @property
    def asked(self) -> int:
        """How many tests ran; those that the suite itself skips did not."""
        return sum(ending.outcome != "skipped" for ending in self.direct.values())

    def passed(self, outcomes: Outcomes) -> int:
        return sum(ending.outcome == "passed" for ending in outcomes.values())

    @property
    def answers(self) -> int:
        """How many answers were compared."""
        return sum(len(ending.answers) for ending in self.direct.values())

    @property
    def differing(self) -> list[str]:
        """Tests that ended differently, or whose client got a different answer."""
        tests = sorted(self.direct.keys() | self.through.keys())
        return [test for test in tests if self.direct.get(test) != self.through.get(test)]


def _named(outcomes: Outcomes) -> Outcomes:
    prefixes = tuple(f"tests/api_resources/{name}" for name in NAMED)
    return {test: ending for test, ending in outcomes.items() if test.startswith(prefixes)}


@dataclass(frozen=True)
class Suite:
    """The suite as installed."""

    python: Path
    source: Path
    steady: Path
    document: Path
    logs: Path

    @contextmanager
    def mock(self) -> Iterator[str]:
        """The mock provider's base URL while the block runs."""
        port = free_port()
        styles = [
            f"--validator-{kind}-{shape}-format=brackets"
            for kind in ("query", "form")
            for shape in ("array", "object")
        ]
        command = [str(self.steady), "--host", "127.0.0.1", "-p", str(port), "--quiet", "--generator-seed=7"]
        command += ["--stream-interval=1", *styles, str(self.document)]
        with (self.logs / "mock.log").open("wb") as log:
            running = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until(
                lambda: answers(f"http://127.0.0.1:{port}/_x-steady/health"),
                "the mock provider did not start",
            )
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            running.terminate()
            running.wait()

    def run(self, files: Sequence[str], *, base_url: str, key: str, label: str) -> Outcomes:
        """Run the tests of these files against `base_url`."""
        outcomes = self.logs / f"{label}.json"
        outcomes.unlink(missing_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
        environment |= {
            "PYTHONPATH": str(HERE),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TEST_API_BASE_URL": base_url,
            "SUITE_API_KEY": key,
            "SUITE_OUTCOMES": str(outcomes),
        }
        command = [str(self.python), "-m", "pytest", "-o", "addopts=", "-p", "ratchet_suite"]
        command += ["-p", "no:cacheprovider", "-q", "--tb=short", *files]
        with (self.logs / f"{label}.log").open("wb") as log:
            subprocess.run(command, cwd=self.source, env=environment, stdout=log, stderr=log, check=False)
        if not outcomes.exists():
            raise SystemExit(f"OpenAI's suite did not run; its words are in {self.logs / label}.log")
        return {test: Ending(*found) for test, found in json.loads(outcomes.read_text()).items()}


def install(home: Path, modules: Path) -> Suite:
    """Fetch and prepare everything that the suite needs, under `home`."""
    python = packages.python_with(HERE / "requirements.txt", home / "openai-venv")
    source = packages.source_of(HERE / "source.txt", home / "openai-source", python)
    logs = home / "logs"
    logs.mkdir(exist_ok=True)
    document = home / "openapi.json"
    said = packages.run([str(python), str(HERE / "document.py"), str(source), str(document)])
    print(f"The mock's document: {said.strip()}")
    return Suite(python, source, modules / ".bin" / "steady", document, logs)


def compare(suite: Suite, product: Product, *, only_named: bool) -> Comparison:
    """Run the suite both ways; `only_named` leaves out all files but those in NAMED."""
    files = [f"tests/api_resources/{name}" for name in NAMED] if only_named else ["tests/api_resources"]
    with suite.mock() as base_url:
        project = product.create_project("openai-suite", upstream=base_url, credential="My API Key")
        print("OpenAI's API-resource tests, directly ...", flush=True)
        direct = suite.run(files, base_url=base_url, key="", label="openai-direct")
        print("OpenAI's API-resource tests, through the gateway ...", flush=True)
        through = suite.run(files, base_url=project.base_url, key=project.key, label="openai-through")
    return Comparison(direct, through)
