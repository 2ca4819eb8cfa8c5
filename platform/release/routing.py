"""Which version answers a call: pure data and one pure function, evaluated by the gateway for every call.

Does not read tables; `release.selectors.routes` fills these types, the gateway keeps them in memory."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """A model version as the gateway needs it."""

    model_version_id: str
    version: str
    """For people and headers, e.g. `support-desk-v2`."""
    served_name: str
    node_url: str
    """Origin of a policy node that serves it, without a path."""


@dataclass(frozen=True, slots=True)
class Route:
    """One alias of one project."""

    project_id: str
    alias: str
    deployment_id: str
    champion: Target
    canary: Target | None
    canary_share: float
    """0 to 1."""
    salt: str
    """Changes with each promotion, so that successive canaries fall on different runs."""


def choose(route: Route, run_id: str) -> Target:
    """The version that answers this run: the same one for every call of the run while the shares stand."""
    if route.canary is None:
        return route.champion
    digest = hashlib.sha256(f"{route.salt}/{run_id}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    return route.canary if position < route.canary_share else route.champion
