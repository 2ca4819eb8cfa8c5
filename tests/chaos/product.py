"""The product under test, from outside: a home of its own, its processes, its stores, and what can be done to them.

Everything goes through doors that an operator has: commands, signals, the file system. `kill -9` hits a process
group, and what was killed is started again at once, as a supervisor would. What to do when is in
`tests.chaos.faults`."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import orjson

from config import embedded, environment
from config.run import programs
from tests.chaos.clock import SetClock

ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 60.0
_OTHERS = ("DATABASE_URL", "REDIS_URL", "RATCHET_HOME", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Process:
    """A supervised process of the product."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        variables: Mapping[str, str],
        log: Path,
        port: int | None = None,
    ) -> None:
        self.name = name
        self.port = port
        """Where it answers `/readyz`, for a gateway."""
        self._command = command
        self._variables = variables
        self._log = log
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._running = subprocess.Popen(
                self._command, cwd=ROOT, env=self._variables, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def has_died(self) -> bool:
        """Whether it ended without being asked to."""
        return self._running is not None and self._running.poll() is not None

    @property
    def pid(self) -> int:
        assert self._running is not None
        return self._running.pid

    @property
    def is_ready(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def wait_ready(self) -> None:
        """Block until a gateway knows its keys, or is not running any more. Raises RuntimeError after
        READY_TIMEOUT_S."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self.is_ready and not self.has_died:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not get ready")
            time.sleep(0.05)

    def kill_9(self) -> None:
        if self._running is not None:
            self.send(signal.SIGKILL)
            self._running.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children."""
        assert self._running is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._running.pid, number)

    def stop(self) -> None:
        """End it in order; what does not end within a supervisor's patience is killed."""
        if self._running is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._running.pid, signal.SIGCONT)
            self._running.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._running.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._running.pid, signal.SIGKILL)
        self._running.wait()
        self._running = None


@dataclass(frozen=True)
class Installation:
    """A home with embedded servers, migrated: what several experiments can share, one after the other."""

    home: Path
    variables: Mapping[str, str]
    env: environment.Environment

    @classmethod
    def make(cls, home: Path) -> "Installation":
        """Start the servers of a new home and make the schema."""
        home.mkdir(parents=True)
        kept = {name: value for name, value in os.environ.items() if name not in _OTHERS}
        path = os.pathsep.join([str(ROOT / "platform"), str(ROOT)])
        variables = kept | {"RATCHET_HOME": str(home), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        variables["DJANGO_SETTINGS_MODULE"] = "config.settings"
        made = cls(home, variables, environment.read(variables))
        try:
            embedded.start(made.env)
            made.manage("migrate", "--verbosity", "0")
        except BaseException:
            made.delete()
            raise
        return made

    def manage(self, *arguments: str) -> str:
        """What a management command prints. Raises RuntimeError when it fails."""
        return self.python(str(ROOT / "manage.py"), *arguments)

    def python(self, *arguments: str) -> str:
        """What a Python program prints that runs with this home's settings. Raises RuntimeError when it fails."""
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=dict(self.variables),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments[:2])} failed: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def make_project(self, name: str, upstream: str) -> tuple[str, str]:
        """A project that relays to `upstream`; its id and API key."""
        made = orjson.loads(self.manage("create_project", name, "--upstream", upstream))
        return made["project"], made["api_key"]

    def crash_postgres(self) -> None:
        """End PostgreSQL without a checkpoint, so that the next start recovers from its log."""
        pid = int((self.home / "postgres" / "data" / "postmaster.pid").read_text().split("\n")[0])
        os.kill(pid, signal.SIGQUIT)
        deadline = time.monotonic() + 30
        while Path(f"/proc/{pid}").exists():
            if time.monotonic() > deadline:
                raise RuntimeError("PostgreSQL did not crash when told to")
            time.sleep(0.02)

    def delete(self) -> None:
        """Stop the servers and leave nothing behind."""
        embedded.stop(self.env)
        data = self.home / "postgres"
        if data.is_symlink():
            shutil.rmtree(data.resolve(), ignore_errors=True)
        shutil.rmtree(self.env.sockets, ignore_errors=True)
        shutil.rmtree(self.home, ignore_errors=True)


class Product:
    """The processes of one experiment: gateways, ingest, a worker and the beat."""

    def __init__(
        self,
        installation: Installation,
        *,
        ports: Sequence[int],
        logs: Path,
        clock: SetClock | None,
        gateway_wrapper: Sequence[str] = (),
    ) -> None:
        """One gateway for each port. `gateway_wrapper` goes in front of their arguments: how a sabotaged build is
        run."""
        commands = {program.name: program.arguments for program in programs(installation.env)}
        faked = {**installation.variables, **(clock.variables if clock else {})}

        def process(name: str, command: Sequence[str], variables: Mapping[str, str]) -> Process:
            return Process(name, command, variables, logs / f"{name}.log")

        self.gateways = []
        for number, port in enumerate(ports):
            env = replace(installation.env, gateway_port=port)
            python, *arguments = next(p.arguments for p in programs(env) if p.name == "gateway")
            command = [python, *gateway_wrapper, *arguments]
            self.gateways.append(
                Process(f"gateway {number}", command, faked, logs / f"gateway-{number}.log", port)
            )
        self.ingest = process("ingest", commands["ingest"], faked)
        self.worker = process("worker", commands["worker"], installation.variables)
        self.beat = process("beat", commands["beat"], installation.variables)

    @property
    def processes(self) -> list[Process]:
        return [*self.gateways, self.ingest, self.worker, self.beat]

    def start(self) -> None:
        for process in self.processes:
            process.start()
        self.wait_ready()

    def wait_ready(self) -> None:
        for gateway in self.gateways:
            gateway.wait_ready()

    def kill(self) -> None:
        """End everything at once."""
        for process in self.processes:
            process.kill_9()
