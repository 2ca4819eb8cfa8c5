"""What the installation is told from outside: every environment variable Ratchet reads, read once, typed.

Does not start anything; `config.embedded` starts servers, `config.settings` hands values to Django."""

import hashlib
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from telemetry import spool


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Typed view of the process environment."""

    home: Path
    """All state of the embedded services, spool, artifacts, secrets (RATCHET_HOME)."""
    database_url: str
    redis_url: str
    embedded_postgres: bool
    """True when DATABASE_URL is not set: Ratchet runs its own server."""
    embedded_redis: bool
    gateway_port: int
    gateway_processes: int
    """How many gateway processes share the port."""
    console_port: int
    policy_port: int
    otlp_endpoint: str
    """OTEL_EXPORTER_OTLP_ENDPOINT; empty means that nothing is exported."""
    otel_content: bool
    """Whether spans carry prompts and answers as well."""
    base_model: Path
    """Folder of the base model that the embedded policy server serves."""
    connect_timeout_s: float
    first_byte_timeout_s: float
    idle_timeout_s: float
    drain_on_disconnect: bool
    """RATCHET_ON_DISCONNECT: read an answer on to its end when the client has left, rather than cancel it."""
    drain_max_bytes: int
    drain_max_s: float
    spool_max_bytes: int
    """Quota of one gateway process's spool; what comes beyond it is lost, and counted."""
    fsync_interval_s: float
    """At most so long is a record only in the page cache."""
    strict_capture: bool
    """RATCHET_CAPTURE_SYNC: an answer's last byte waits until the call's end record is on the disk."""
    max_lag_s: float
    """A gateway whose oldest record waits longer than this to be shipped is not ready."""
    retention_months: int | None
    """Whole months, before the current one, whose requests and answers are kept; None keeps all."""
    object_store: str
    """`s3://bucket/prefix` for dataset snapshots; empty: they lie in `objects`."""
    object_store_endpoint: str
    """URL of an S3-compatible server; empty for AWS's own."""

    @property
    def sockets(self) -> Path:
        """Folder of the embedded servers' Unix sockets: short, because a socket's path may not pass 107 bytes."""
        return socket_folder(self.home)

    @property
    def spool(self) -> Path:
        return self.home / "spool"

    @property
    def snapshot(self) -> Path:
        """File of the keys and routes that a gateway serves with when it starts while PostgreSQL is away."""
        return self.home / "gateway" / "snapshot.sealed"

    @property
    def objects(self) -> Path:
        """Root of the object store: adapters, snapshots, job folders."""
        return self.home / "objects"

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}"

    @property
    def console_url(self) -> str:
        return f"http://127.0.0.1:{self.console_port}"

    @property
    def policy_url(self) -> str:
        return f"http://127.0.0.1:{self.policy_port}"


def socket_folder(home: Path) -> Path:
    """A short folder of its own for each home, so that two installations on one machine never meet."""
    tag = hashlib.sha256(str(home).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"ratchet-{tag}"


def read(variables: Mapping[str, str] = os.environ) -> Environment:
    """Build the environment from `variables`. Raises ValueError naming the variable that does not parse."""
    repository = Path(__file__).resolve().parents[2]
    home = Path(variables.get("RATCHET_HOME") or repository / ".ratchet").absolute()
    sockets = socket_folder(home)
    return Environment(
        home=home,
        database_url=variables.get("DATABASE_URL")
        or f"postgresql://ratchet@/ratchet?host={quote(str(sockets))}",
        redis_url=variables.get("REDIS_URL") or f"redis+socket://{sockets}/redis.sock",
        embedded_postgres=not variables.get("DATABASE_URL"),
        embedded_redis=not variables.get("REDIS_URL"),
        gateway_port=_port(variables, "RATCHET_GATEWAY_PORT", 8400),
        gateway_processes=_whole_number(
            variables,
            "RATCHET_GATEWAY_PROCESSES",
            1,
            at_most=64,
            kind="a whole number of processes from 1 to 64",
        ),
        console_port=_port(variables, "RATCHET_CONSOLE_PORT", 8401),
        policy_port=_port(variables, "RATCHET_POLICY_PORT", 8402),
        otlp_endpoint=variables.get("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
        otel_content=_departs(variables, "RATCHET_OTEL_CONTENT", "0", "1"),
        base_model=Path(
            variables.get("RATCHET_BASE_MODEL") or repository / "deploy" / "models" / "support-desk-base"
        ).absolute(),
        connect_timeout_s=_duration(variables, "RATCHET_CONNECT_TIMEOUT_S", 10.0),
        first_byte_timeout_s=_duration(variables, "RATCHET_FIRST_BYTE_TIMEOUT_S", 600.0),
        idle_timeout_s=_duration(variables, "RATCHET_IDLE_TIMEOUT_S", 300.0),
        drain_on_disconnect=_departs(variables, "RATCHET_ON_DISCONNECT", "cancel", "drain"),
        drain_max_bytes=_bytes(variables, "RATCHET_DRAIN_MAX_BYTES", 1 << 20),
        drain_max_s=_duration(variables, "RATCHET_DRAIN_MAX_S", 30.0),
        spool_max_bytes=_bytes(variables, "RATCHET_SPOOL_MAX_BYTES", spool.MAX_BYTES),
        fsync_interval_s=_duration(variables, "RATCHET_FSYNC_INTERVAL_MS", 10.0, unit="milliseconds") / 1000,
        strict_capture=_departs(variables, "RATCHET_CAPTURE_SYNC", "interval", "strict"),
        max_lag_s=_duration(variables, "RATCHET_MAX_LAG_S", 3600.0),
        retention_months=_months(variables, "RATCHET_RETENTION_MONTHS"),
        object_store=variables.get("RATCHET_OBJECT_STORE", ""),
        object_store_endpoint=variables.get("RATCHET_OBJECT_STORE_ENDPOINT", ""),
    )


def _port(variables: Mapping[str, str], name: str, default: int) -> int:
    return _whole_number(variables, name, default, at_most=65535, kind="a port number from 1 to 65535")


def _bytes(variables: Mapping[str, str], name: str, default: int) -> int:
    return _whole_number(variables, name, default, at_most=2**63 - 1, kind="a positive whole number of bytes")


def _months(variables: Mapping[str, str], name: str) -> int | None:
    kind = "a whole number of months from 1 to 1200"
    return _whole_number(variables, name, 0, at_most=1200, kind=kind) or None


def _whole_number(variables: Mapping[str, str], name: str, default: int, *, at_most: int, kind: str) -> int:
    text = variables.get(name, "")
    if not text:
        return default
    # Plain digits only, and few of them: int() takes other scripts' digits and refuses very long texts.
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
    if not 0 < value <= at_most:
        raise ValueError(f"{name} must be {kind}, not {text!r}")
    return value


def _duration(variables: Mapping[str, str], name: str, default: float, *, unit: str = "seconds") -> float:
    text = variables.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number of {unit}, not {text!r}")
    return value


def _departs(variables: Mapping[str, str], name: str, default: str, other: str) -> bool:
    """Whether a setting of two possible values departs from its default."""
    text = variables.get(name, "") or default
    if text not in {default, other}:
        raise ValueError(f"{name} must be {default!r} or {other!r}, not {text!r}")
    return text == other
