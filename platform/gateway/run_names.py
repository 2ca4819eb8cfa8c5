"""How a caller may name its run, in order of precedence. It never has to: `telemetry.stitching` finds runs
alone.

One function per convention; each looks at the request and answers with the name or with an empty text. The
run that a name stands for is the same for every gateway and after every restart.

Ratchet's own names come first, then those that agents send to other gateways and tracing services: whoever comes from
one of these changes nothing but the base URL."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote
from uuid import UUID, uuid5

from gateway.errors import bad_request
from gateway.headers import first
from gateway.wire.exchange import Header

MAX_CHARACTERS = 200
_NAMED_PATH = re.compile(r"/r/([^/]+)(/v1(?:/.*)?)")


@dataclass(frozen=True, slots=True)
class Naming:
    """The places in which a run's name may stand."""

    headers: Sequence[Header]
    path_name: str
    """`<run-id>` of a base URL ending in `/r/<run-id>/v1`."""
    metadata_run_id: str
    """`metadata.run_id` of the body."""


def split_path(path: str) -> tuple[str, str]:
    """The path without its `/r/<run-id>`, and the name that stood there or an empty text."""
    named = _NAMED_PATH.fullmatch(path)
    return (named[2], unquote(named[1])) if named else (path, "")


def _header(naming: Naming) -> str:
    return first(naming.headers, b"x-ratchet-run-id")


def _path(naming: Naming) -> str:
    return naming.path_name


def _metadata(naming: Naming) -> str:
    return naming.metadata_run_id


def _session_header(naming: Naming) -> str:
    """The first that is there, in the order of `SESSION_HEADERS`; then `x-<vendor>-session-id` of any vendor."""
    found = {name: value for name, value in naming.headers if _is_session(name)}
    if not found:
        return ""
    named = next((name for name in SESSION_HEADERS if name in found), min(found))
    return found[named].decode("latin-1")


def _is_session(name: bytes) -> bool:
    # Nearly every header falls at the first test.
    return (
        name.endswith(b"-id")
        and (name in SESSION_HEADERS or (name.startswith(b"x-") and name.endswith(b"-session-id")))
        and name not in _NO_RUNS
    )


SESSION_HEADERS = (
    b"helicone-session-id",
    b"x-litellm-trace-id",
    b"x-litellm-session-id",
    b"x-portkey-trace-id",
    b"x-session-id",
    b"langfuse-session-id",
    b"session-id",
)
"""By which agents tell other gateways what belongs together."""
_NO_RUNS = frozenset({b"x-bf-session-id"})
"""Says which provider's key to stay with, and nothing about runs."""

CONVENTIONS: tuple[Callable[[Naming], str], ...] = (_header, _path, _metadata, _session_header)


def run_name(naming: Naming) -> str:
    """The run's name, or an empty text. Raises Refused (400) for a name that is too long to be kept."""
    name = next((name for convention in CONVENTIONS if (name := convention(naming).strip())), "")
    if len(name) > MAX_CHARACTERS:
        raise bad_request(
            f"The run's name has {len(name)} characters; use at most {MAX_CHARACTERS}.", param="run_id"
        )
    return name


def named_run(key_id: UUID, name: str) -> UUID:
    """The id of the run that this API key calls `name`: the id itself when an earlier answer's id is sent back."""
    try:
        told = UUID(name)
    except ValueError:
        return uuid5(key_id, name)
    return told if str(told) == name else uuid5(key_id, name)
