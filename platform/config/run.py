"""The whole product in one foreground: embedded servers, then every process under supervisord, until Ctrl-C.

Owns what is started, in which order, and what a newcomer is told. A process that dies is started again; a port that
is taken, a home that is in use or a server that does not answer is one sentence, before anything has started.
`manage.py run` and the demo use it."""

import fcntl
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import psutil
import psycopg
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from config import embedded
from config.environment import Environment
from learning.artifacts import UnsafeArtifact, check_base_model

READY_TIMEOUT_S = 120.0


class CannotRun(RuntimeError):
    """The product cannot start here and now; the sentence says why and what to do."""


@dataclass(frozen=True)
class Program:
    """One supervised process."""

    name: str
    arguments: Sequence[str]
    start_order: int
    """Lower starts first and stops last."""


def programs(env: Environment) -> list[Program]:
    """Every process of the product, on this machine."""
    python = sys.executable

    def listen(port: int) -> list[str]:
        return ["--host", "127.0.0.1", "--port", str(port)]

    def celery(*arguments: str) -> list[str]:
        return [python, "-m", "celery", "--quiet", "-A", "workers.app", *arguments, "--loglevel", "WARNING"]

    def worker(queue: str) -> list[str]:
        # No gossip, no mingle, no heartbeat: workers do not talk to each other, rows coordinate them.
        alone = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        return celery("worker", "-n", f"{queue}@%h", "-Q", queue, "-c", "1", *alone)

    gateway = [python, "-m", "gateway", *listen(env.gateway_port)]
    gateways = [Program("gateway", gateway, 20)]
    if env.gateway_processes > 1:
        numbers = range(1, env.gateway_processes + 1)
        gateways = [Program(f"gateway-{number}", [*gateway, "--share-port"], 20) for number in numbers]
    policy = [python, "-m", "workers.policy_server", "--base", str(env.base_model)]
    policy += ["--served-model-name", env.base_model.name, *listen(env.policy_port)]
    console = [python, "-m", "granian", "--interface", "wsgi", *listen(env.console_port)]
    console += ["--workers", "1", "--blocking-threads", "4", "--log-level", "warning"]
    console += ["config.wsgi:application"]
    return [
        Program("policy", policy, 10),
        *gateways,
        Program("ingest", [python, str(_repository() / "manage.py"), "ingest"], 20),
        Program("console", console, 20),
        Program("worker", worker("default"), 30),
        Program("trainer", worker("gpu"), 30),
        # Waits minutes for models that other people serve, and nothing else may wait with it.
        Program("judges", worker("judges"), 30),
        # The stock scheduler keeps its times in memory: nothing pickled, and a missed beat is made up by the next.
        Program("beat", celery("beat", "-S", "celery.beat:Scheduler"), 40),
    ]


class Product:
    """The running product: `start`, then `wait_ready`, then `stop`. One per home at a time."""

    def __init__(self, env: Environment) -> None:
        self.env = env
        self._lock: IO[str] | None = None
        self._embedded_started: list[str] = []
        self._supervisor: subprocess.Popen[bytes] | None = None

    def start(self, say: Callable[[str], None] = print) -> None:
        """Start servers, bring the schema up to date, start every process.

        Raises CannotRun, or EmbeddedServerError from the embedded servers."""
        self._take_home()
        leftovers = _stop_leftovers(self.env)
        if leftovers:
            say("Stopped what an earlier start had left behind")
        for name, port in [
            ("RATCHET_GATEWAY_PORT", self.env.gateway_port),
            ("RATCHET_CONSOLE_PORT", self.env.console_port),
            ("RATCHET_POLICY_PORT", self.env.policy_port),
        ]:
            _require_free(name, port)
        try:
            check_base_model(self.env.base_model)
        except UnsafeArtifact as error:
            raise CannotRun(f"RATCHET_BASE_MODEL: {error}") from None
        started = embedded.start(self.env)
        self._embedded_started = list(embedded.SERVERS) if leftovers else started
        if started:
            say(f"PostgreSQL and Redis: embedded, data in {self.env.home}")
        _require_database(self.env)
        say("Database schema: up to date" if not _migrate() else "Database schema: migrated")
        self._start_supervisor()

    def wait_ready(self) -> None:
        """Block until gateway, console and policy server answer. Raises CannotRun after READY_TIMEOUT_S."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        for name, url in [
            ("policy server", f"{self.env.policy_url}/health"),
            ("gateway", f"{self.env.gateway_url}/readyz"),
            ("console", f"{self.env.console_url}/login/"),
        ]:
            while not _answers(url):
                if self._supervisor is None or self._supervisor.poll() is not None:
                    raise CannotRun(f"the process manager stopped; its last words are in {self.logs}")
                if time.monotonic() > deadline:
                    raise CannotRun(f"the {name} did not get ready; its last words are in {self.logs}")
                time.sleep(0.1)

    def wait(self) -> int:
        """Block until the process manager ends; return its exit status."""
        assert self._supervisor is not None
        return self._supervisor.wait()

    def stop(self) -> None:
        """Stop every process, then the embedded servers that this object started. Safe to call twice."""
        if self._supervisor is not None:
            if self._supervisor.poll() is None:
                self._supervisor.terminate()
            self._supervisor.wait()
            self._supervisor = None
        embedded.stop(self.env, servers=self._embedded_started)
        self._embedded_started = []
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def logs(self) -> Path:
        """Folder with one log a process."""
        return self.env.home / "logs"

    def _take_home(self) -> None:
        self.env.home.mkdir(parents=True, exist_ok=True)
        self._lock = (self.env.home / "run.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotRun(
                f"Ratchet already runs from {self.env.home}: stop it with Ctrl-C in its terminal, "
                "or set RATCHET_HOME to another folder"
            ) from None

    def _start_supervisor(self) -> None:
        self.logs.mkdir(exist_ok=True)
        config = _configuration(self.env)
        lines = [
            "[supervisord]",
            "nodaemon=true",
            f"logfile={_quoted(self.logs / 'supervisord.log')}",
            f"pidfile={_quoted(self.env.home / 'supervisord.pid')}",
            f"childlogdir={_quoted(self.logs)}",
            "loglevel=warn",
            *(["user=root"] if os.getuid() == 0 else []),
        ]
        for program in programs(self.env):
            lines += [
                f"[program:{program.name}]",
                f"command={_quoted(shlex.join(program.arguments))}",
                f"priority={program.start_order}",
                f"directory={_quoted(_repository())}",
                "autorestart=true",
                "startsecs=2",
                "startretries=1000000",  # never give up: what it waits for (a database, a port) may come back
                "stopwaitsecs=20",
                "stopasgroup=true",
                "killasgroup=true",
                "redirect_stderr=true",
                f"stdout_logfile={_quoted(self.logs / program.name)}.log",
                "stdout_logfile_maxbytes=10MB",
                "stdout_logfile_backups=2",
            ]
        config.write_text("\n".join(lines) + "\n")
        # A session of its own, so that Ctrl-C reaches only this process, which then stops things in order.
        self._supervisor = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "config.settings",
                # Threads that wait for work must not spin: everything here shares the machine's cores.
                "OMP_WAIT_POLICY": "PASSIVE",
            },
        )


def _configuration(env: Environment) -> Path:
    return env.home / "supervisord.conf"


def _quoted(value: object) -> str:
    """A value of supervisord's configuration, where % begins an expansion."""
    return str(value).replace("%", "%%")


def _stop_leftovers(env: Environment) -> bool:
    """Stop the process manager of a start that was killed, and with it its processes; True if there was one."""
    try:
        process = psutil.Process(int((env.home / "supervisord.pid").read_text()))
        if str(_configuration(env)) not in process.cmdline():
            return False  # the number has gone to another process since
        process.terminate()
        process.wait(timeout=60)
    except (OSError, ValueError, psutil.NoSuchProcess):
        return False
    return True


def _repository() -> Path:
    return Path(__file__).resolve().parents[2]


def _require_free(name: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise CannotRun(
                f"port {port} is taken: stop what uses it, or set {name} to a free port"
            ) from None


def _require_database(env: Environment) -> None:
    try:
        psycopg.connect(env.database_url, connect_timeout=5).close()
    except psycopg.OperationalError as error:
        reason = str(error).strip().splitlines()[-1]
        raise CannotRun(
            f"PostgreSQL does not answer at DATABASE_URL ({reason}): start it, or unset DATABASE_URL"
        ) from None


def _migrate() -> bool:
    """Apply migrations; True when there were any."""
    executor = MigrationExecutor(connection)
    pending = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if pending:
        call_command("migrate", verbosity=0)
    connection.close()
    return bool(pending)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
