"""How a caller may name its run, in order of precedence. It never has to: `telemetry.stitching` finds runs
alone.

One function per convention; each looks at the request and answers with the name or with an empty text. The
run that a name stands for is the same for every gateway and after every restart."""

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


CONVENTIONS: tuple[Callable[[Naming], str], ...] = (_header, _path, _metadata)


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
