"""Ratchet as a user has it, for the time of a check: embedded servers and all processes that a call passes.

Its home is a folder of its own, emptied at every start. Uses the command line, the gateway's port and the control API;
looks into nothing."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from config import embedded, environment
from config.run import programs

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
LEFT_OUT = {"policy", "trainer"}
"""Programs that no call to a provider needs."""


@dataclass(frozen=True)
class Project:
    """A project of the product: what a client is given, and what its key may read."""

    base_url: str
    key: str
    console: str

    def read(self, path: str) -> Any:
        """One answer of the control API."""
        answer = httpx.get(f"{self.console}/api/{path}", headers={"authorization": f"Bearer {self.key}"})
        answer.raise_for_status()
        return answer.json()

    def calls(self) -> list[dict[str, Any]]:
        """The project's captured calls, the oldest first."""
        items: list[dict[str, Any]] = self.read("calls?limit=1000")["items"]
        return items[::-1]


@dataclass(frozen=True)
class Product:
    """The running product."""

    home: Path
    variables: dict[str, str]

    def create_project(self, name: str, *, upstream: str, credential: str) -> Project:
        """A project of its own that relays to `upstream`."""
        said = self._manage(
            "create_project", name, "--upstream", upstream, "--upstream-key-env", "UPSTREAM_KEY",
            UPSTREAM_KEY=credential,
        )  # fmt: skip
        made = json.loads(said.splitlines()[-1])
        console = f"http://127.0.0.1:{self.variables['RATCHET_CONSOLE_PORT']}"
        project = Project(base_url=made["base_url"], key=made["api_key"], console=console)
        wait_until(lambda: _knows(project), "the gateway did not hear of the project")
        return project

    def _manage(self, *arguments: str, **variables: str) -> str:
        command = [sys.executable, str(ROOT / "manage.py"), *arguments]
        done = subprocess.run(
            command, env=self.variables | variables, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"manage.py {arguments[0]} failed: {done.stderr.strip()}")
        return done.stdout


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def becomes_true(condition: Callable[[], Any], timeout_s: float = START_TIMEOUT_S) -> bool:
    """Wait for a condition; whether it came true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def wait_until(condition: Callable[[], Any], sentence: str) -> None:
    """Wait for a condition; end the program with the sentence when it does not come true."""
    if not becomes_true(condition):
        raise SystemExit(sentence)


@contextmanager
def running_product(home: Path) -> Iterator[Product]:
    """The product, from an empty home, while the block runs."""
    gateway, console = free_port(), free_port()
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in {"DATABASE_URL", "REDIS_URL", "OTEL_EXPORTER_OTLP_ENDPOINT"}
    } | {
        "RATCHET_HOME": str(home),
        "RATCHET_GATEWAY_PORT": str(gateway),
        "RATCHET_CONSOLE_PORT": str(console),
        "DJANGO_SETTINGS_MODULE": "config.settings",
    }
    env = environment.read(variables)
    embedded.stop(env)
    shutil.rmtree(home, ignore_errors=True)
    product = Product(home, variables)
    started: list[subprocess.Popen[bytes]] = []

    def are_ready() -> bool:
        for process in started:
            if process.poll() is not None:
                raise SystemExit(f"a process of the product ended; its log is in {home}")
        return answers(f"{env.gateway_url}/readyz") and answers(f"{env.console_url}/login/")

    try:
        embedded.start(env)
        product._manage("migrate", "--verbosity", "0")
        for program in sorted(programs(env), key=lambda program: program.start_order):
            if program.name not in LEFT_OUT:
                with (home / f"{program.name}.log").open("ab") as log:
                    process = subprocess.Popen(
                        program.arguments, cwd=ROOT, env=variables, stdout=log, stderr=log
                    )
                started.append(process)
        wait_until(are_ready, f"the product did not get ready; its logs are in {home}")
        yield product
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
        embedded.stop(env)


def answers(url: str) -> bool:
    """Whether a GET is answered by 200."""
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def _knows(project: Project) -> bool:
    """Whether the gateway lets the key in. Feedback that says nothing is refused only after that, without trace."""
    headers = {"authorization": f"Bearer {project.key}"}
    return httpx.post(f"{project.base_url}/feedback", headers=headers, json={}).status_code not in {401, 503}
