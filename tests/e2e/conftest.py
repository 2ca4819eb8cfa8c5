"""A product of its own for each test: a home and ports that nobody else uses, started by the commands people use."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Installation:
    """A home, and the variables that make commands use it."""

    home: Path
    variables: dict[str, str]

    def manage(self, *arguments: str, timeout_s: float = 60) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(ROOT / "manage.py"), *arguments]
        return subprocess.run(
            command, env=self.variables, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def begin(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, str(ROOT / "manage.py"), *arguments]
        return subprocess.Popen(
            command, env=self.variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    @property
    def gateway(self) -> str:
        return f"http://127.0.0.1:{self.variables['RATCHET_GATEWAY_PORT']}"

    @property
    def console(self) -> str:
        return f"http://127.0.0.1:{self.variables['RATCHET_CONSOLE_PORT']}"


def free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    gateway, console, policy = free_ports(3)
    variables = {
        name: value for name, value in os.environ.items() if name not in {"DATABASE_URL", "REDIS_URL"}
    } | {
        "RATCHET_HOME": str(tmp_path / "home"),
        "RATCHET_GATEWAY_PORT": gateway,
        "RATCHET_CONSOLE_PORT": console,
        "RATCHET_POLICY_PORT": policy,
    }
    made = Installation(tmp_path / "home", variables)
    yield made
    made.manage("stop_servers")


@pytest.fixture
def running(installation: Installation) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start a long command; whatever still runs at the end of the test is asked to stop."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> "subprocess.Popen[str]":
        started.append(installation.begin(*arguments))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=60)
        if process.stdout:
            process.stdout.close()
