"""The last snapshot on disk, so that a gateway which starts while PostgreSQL is away knows its keys and routes.

One file for all gateway processes of a home: JSON, encrypted under a key of the keyring, because providers'
credentials are in it. Nothing here raises: a file that cannot be read, or is none of ours, is as good as none, and the
log says why. When it is read and written is `gateway.keeper`'s business."""

import fcntl
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.limits import Limit, Measure
from gateway.routing import AliasTarget, Price, ProjectRoutes, Timeouts, Upstream
from gateway.snapshot import Caller, Snapshot, Webhook
from release.routing import Route, Target
from telemetry.metrics import Better, Kind, Level, Metric, Rules

log = logging.getLogger(__name__)

HEADER = b"ratchet snapshot 3\n"
"""In clear in front of the rest, and authenticated with it. The number grows with every change of a type below."""
NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class Kept:
    """A snapshot as it was found on disk."""

    snapshot: Snapshot
    confirmed_at_s: float
    """Unix time at which a gateway last found the same in PostgreSQL."""


class SnapshotFile:
    """The file at `path`; `key` is the keyring's credential key. Processes may share it, threads may not."""

    def __init__(self, path: Path, *, key: bytes) -> None:
        self._path = path
        self._cipher = AESGCM(
            HKDF(SHA256(), length=32, salt=None, info=b"ratchet gateway snapshot v1").derive(key)
        )
        self._write_problem = ""

    def read(self) -> Kept | None:
        """What the file holds, or None."""
        try:
            confirmed_at_s = self._path.stat().st_mtime
            return Kept(_decode(self._unsealed()), confirmed_at_s)
        except FileNotFoundError:
            return None
        except _Unreadable as error:
            log.warning("%s is ignored: %s", self._path, error)
        except (KeyError, TypeError, ValueError, AttributeError):
            log.warning("%s is ignored: it has another shape than this version writes", self._path)
        except OSError as error:
            log.warning("%s cannot be read: %s", self._path, error.strerror)
        return None

    def keep(self, snapshot: Snapshot) -> None:
        """Have the file hold this snapshot, which is what PostgreSQL says at the moment."""
        try:
            self._keep(_encode(snapshot))
            problem = ""
        except (OSError, orjson.JSONEncodeError) as error:
            problem = str(error)
        if problem and problem != self._write_problem:
            log.error("keys and routes are not kept for the next start: %s", problem)
        self._write_problem = problem

    def _keep(self, plain: bytes) -> None:
        folder = self._path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Compared with the file, not with what this process wrote last: another one that stood still for a while
            # may have put something older there.
            if self._holds(plain):
                os.utime(self._path)
                return
            draft = self._path.with_suffix(".draft")
            self._write(draft, plain)
            draft.rename(self._path)
            os.fsync(number)
        except BlockingIOError:
            pass  # another process is writing, and both look again at their next load
        finally:
            os.close(number)

    def _holds(self, plain: bytes) -> bool:
        try:
            return self._unsealed() == plain
        except (FileNotFoundError, _Unreadable):
            return False

    def _write(self, path: Path, plain: bytes) -> None:
        nonce = os.urandom(NONCE_BYTES)
        path.unlink(missing_ok=True)  # of a process that was killed, or with another mode
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(HEADER + nonce + self._cipher.encrypt(nonce, plain, HEADER))
            file.flush()
            os.fsync(file.fileno())

    def _unsealed(self) -> bytes:
        """Raises OSError or _Unreadable."""
        stored = self._path.read_bytes()
        if not stored.startswith(HEADER):
            raise _Unreadable("it was written by another version")
        nonce, text = stored[len(HEADER) :][:NONCE_BYTES], stored[len(HEADER) + NONCE_BYTES :]
        try:
            return self._cipher.decrypt(nonce, text, HEADER)
        except (InvalidTag, ValueError):
            raise _Unreadable("it was altered, or sealed under another keyring") from None


class _Unreadable(Exception):
    """The file is not what this version writes under this keyring."""


def _encode(snapshot: Snapshot) -> bytes:
    """The same bytes for equal snapshots."""
    document = {
        "callers": {digest.hex(): caller for digest, caller in snapshot.callers.items()},
        "projects": snapshot.projects,
        "limits": snapshot.limits,
        "rules": snapshot.rules,
        "webhooks": snapshot.webhooks,
    }
    return orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SORT_KEYS)


def _decode(plain: bytes) -> Snapshot:
    document = orjson.loads(plain)
    return Snapshot(
        callers={bytes.fromhex(digest): _caller(caller) for digest, caller in document["callers"].items()},
        projects={UUID(key): _routes(routes) for key, routes in document["projects"].items()},
        limits={UUID(key): tuple(map(_limit, limits)) for key, limits in document["limits"].items()},
        rules={UUID(key): _rules(rules) for key, rules in document["rules"].items()},
        webhooks={
            address: Webhook(stored["name"], _caller(stored["caller"]), stored["secret"])
            for address, stored in document["webhooks"].items()
        },
    )


def _caller(stored: Mapping[str, Any]) -> Caller:
    return Caller(UUID(stored["key_id"]), UUID(stored["project_id"]), stored["is_opted_out"])


def _routes(stored: Mapping[str, Any]) -> ProjectRoutes:
    return ProjectRoutes(
        deployments={name: _route(route) for name, route in stored["deployments"].items()},
        aliases={name: tuple(map(_alias_target, targets)) for name, targets in stored["aliases"].items()},
        upstreams=tuple(map(_upstream, stored["upstreams"])),
    )


def _route(stored: Mapping[str, Any]) -> Route:
    canary = stored["canary"]
    return Route(
        **{
            **stored,
            "champion": Target(**stored["champion"]),
            "canary": Target(**canary) if canary else None,
        }
    )


def _alias_target(stored: Mapping[str, Any]) -> AliasTarget:
    upstream_id = stored["upstream_id"]
    return AliasTarget(**{**stored, "upstream_id": UUID(upstream_id) if upstream_id else None})


def _upstream(stored: Mapping[str, Any]) -> Upstream:
    return Upstream(
        **{
            **stored,
            "id": UUID(stored["id"]),
            "serves": tuple(stored["serves"]),
            "timeouts": Timeouts(**stored["timeouts"]),
            "prices": {model: Price(**price) for model, price in stored["prices"].items()},
        }
    )


def _limit(stored: Mapping[str, Any]) -> Limit:
    return Limit(**{**stored, "id": UUID(stored["id"]), "measure": Measure(stored["measure"])})


def _rules(stored: Mapping[str, Any]) -> Rules:
    metrics = {name: _metric(metric) for name, metric in stored["metrics"].items()}
    return Rules(metrics, stored["is_strict"])


def _metric(stored: Mapping[str, Any]) -> Metric:
    typed = {
        "kind": Kind(stored["kind"]),
        "level": Level(stored["level"]),
        "better": Better(stored["better"]),
    }
    return Metric(**{**stored, **typed, "labels": tuple(stored["labels"])})
