"""Where a call may be sent, in which order: pure data and pure functions over it.

Reads no tables (`gateway.snapshot` fills these types and keeps them in memory), sends nothing (`gateway.relay` walks
the plan), and does not know who is ill (`gateway.breaker` does). A run keeps its place: the same run id and the same
weights give the same plan."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from release.routing import Route, choose


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeouts:
    """How long one upstream may keep a caller waiting, in seconds."""

    connect_s: float = 10.0
    first_byte_s: float = 600.0
    idle_s: float = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """US dollars per million tokens, which is the same number in millionths of a dollar a token."""

    input: float
    output: float
    cached_input: float | None = None
    """None: as `input`."""

    def microusd(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> int:
        """What a call costs, in millionths of a dollar; `cached_tokens` are part of the prompt's."""
        cached_input = self.input if self.cached_input is None else self.cached_input
        fresh = max(0, prompt_tokens - cached_tokens)
        return round(fresh * self.input + cached_tokens * cached_input + completion_tokens * self.output)


@dataclass(frozen=True, kw_only=True, slots=True)
class Upstream:
    """A provider of a project, ready to be called."""

    id: UUID
    name: str
    base_url: str
    """Ends in the API's version path, usually `/v1`."""
    credential: str | None
    """Empty when it needs none; None when the stored one cannot be read, or was sealed for another origin."""
    auth: str = "bearer"
    """`bearer` (Authorization), `x-api-key` (Anthropic) or `api-key` (Azure): the header of the credential."""
    priority: int = 0
    """Lower ones are tried first."""
    serves: tuple[str, ...] = ()
    """Names of the dialects that it answers; empty: all."""
    timeouts: Timeouts = Timeouts()
    max_retries: int = 1
    """Further tries at this upstream before the next one is asked; before the first byte only."""
    asks_usage: bool = True
    """It understands `stream_options.include_usage`."""
    prices: Mapping[str, Price] = field(default_factory=dict)
    """By model name."""

    def __repr__(self) -> str:
        return f"Upstream({self.name!r}, {self.base_url!r})"  # never print the credential by accident


@dataclass(frozen=True, kw_only=True, slots=True)
class AliasTarget:
    """One of the places that an alias stands for: a provider's model, or one of our deployments."""

    weight: int
    priority: int = 0
    upstream_id: UUID | None = None
    model: str = ""
    """The name that the upstream knows; empty: the alias itself."""
    deployment: str = ""
    """Name of one of the project's deployments; set exactly when `upstream_id` is not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectRoutes:
    """Everything that one project may call."""

    deployments: Mapping[str, Route] = field(default_factory=dict)
    """By the deployment's own alias."""
    aliases: Mapping[str, tuple[AliasTarget, ...]] = field(default_factory=dict)
    """By name; one of these goes before a deployment of the same name."""
    upstreams: tuple[Upstream, ...] = ()
    """By priority."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Destination:
    """One place to send a call to."""

    base_url: str
    auth: tuple[bytes, bytes] | None
    """The header that carries the credential there; None where none is needed."""
    model: str = ""
    """What the request's `model` becomes; empty: as the client wrote it."""
    upstream_id: UUID | None = None
    """None for a policy node of ours."""
    name: str
    """For messages and the circuit breaker: the upstream's name, or the node's origin."""
    model_version_id: UUID | None = None
    version: str = ""
    deployment_id: UUID | None = None
    is_canary: bool = False
    timeouts: Timeouts = Timeouts()
    max_retries: int = 0
    asks_usage: bool = True
    price: Price | None = None

    @property
    def is_own(self) -> bool:
        return self.upstream_id is None

    @property
    def key(self) -> UUID | str:
        """What tells destinations of different projects apart: names of upstreams are unique in a project only."""
        return self.upstream_id or self.name


class CredentialUnreadable(ValueError):
    """The credential of the upstreams that could answer cannot be read, or was stored for another origin."""

    def __init__(self, upstream: str) -> None:
        super().__init__(
            f"The credential of the upstream {upstream!r} cannot be read, or was stored for another origin than the"
            " one the upstream names now: set the upstream again, with its credential."
        )


_Place = tuple[Upstream | Route, str]
"""Somebody who could answer, and the name of the model there (empty: as the client wrote it)."""


def plan(
    routes: ProjectRoutes, *, model: str, dialect: str, run_id: str, defaults: Timeouts
) -> list[Destination]:
    """The destinations of a call that asks for `model`, first choice first; empty when nobody could answer it.

    An alias goes before a deployment of the same name, and both before the upstreams that serve the dialect. Below an
    alias the targets of one priority share the runs by weight; those that a run does not fall on follow as its
    fallbacks, and then the next priority. `defaults` are the timeouts of our own nodes. An upstream with an unreadable
    credential is passed over; raises CredentialUnreadable when no other is left.
    """
    serving = [upstream for upstream in routes.upstreams if not upstream.serves or dialect in upstream.serves]
    places: list[_Place]
    if model in routes.aliases:
        targets = sorted(routes.aliases[model], key=lambda target: _turn(target, model, run_id))
        places = [place for target in targets for place in _behind(target, serving, routes.deployments)]
    elif model in routes.deployments:
        places = [(routes.deployments[model], "")]
    else:
        places = [(upstream, "") for upstream in serving]
    return [
        _at_upstream(place, name, asked=model)
        if isinstance(place, Upstream)
        else _at_node(place, run_id, defaults)
        for place, name in _readable(places)
    ]


def passthrough(routes: ProjectRoutes, *, family: str = "") -> Destination | None:
    """Where everything goes that is not interpreted: the project's first upstream, and no other, because what such a
    request speaks of (a file, a batch) is known to one provider only. `family` names the dialect that the upstream
    must serve, where the request tells. Raises CredentialUnreadable."""
    able = [u for u in routes.upstreams if not family or not u.serves or family in u.serves]
    places: list[_Place] = [(upstream, "") for upstream in able[:1]]
    return next(
        (_at_upstream(u, "", asked="") for u, _ in _readable(places) if isinstance(u, Upstream)), None
    )


def _turn(target: AliasTarget, alias: str, run_id: str) -> tuple[int, float]:
    """The target's place in the order of this run: weighted rendezvous hashing.

    The smallest of -ln(u) / weight, with u uniform, falls on each target in proportion to its weight, and so does
    each next one among those that are left. Adding or removing a target moves only the runs that it wins or loses.
    """
    name = f"{alias}/{target.upstream_id}/{target.model}/{target.deployment}/{run_id}"
    digest = hashlib.sha256(name.encode()).digest()
    uniform = (int.from_bytes(digest[:8], "big") + 1) / 2**64
    return target.priority, -math.log(uniform) / target.weight


def _behind(
    target: AliasTarget, serving: Sequence[Upstream], deployments: Mapping[str, Route]
) -> Iterator[_Place]:
    """The target's place; nothing where it is switched off, does not serve the dialect or has no node."""
    if target.deployment in deployments:
        yield deployments[target.deployment], ""
    yield from ((upstream, target.model) for upstream in serving if upstream.id == target.upstream_id)


def _readable(places: Sequence[_Place]) -> list[_Place]:
    """The places without those whose credential is missing. Raises CredentialUnreadable when that leaves none."""
    unreadable = [place for place, _ in places if isinstance(place, Upstream) and place.credential is None]
    if unreadable and len(unreadable) == len(places):
        raise CredentialUnreadable(unreadable[0].name)
    return [(place, name) for place, name in places if place not in unreadable]


def _at_upstream(upstream: Upstream, model: str, *, asked: str) -> Destination:
    return Destination(
        base_url=upstream.base_url,
        auth=_auth(upstream.auth, upstream.credential) if upstream.credential else None,
        model=model,
        upstream_id=upstream.id,
        name=upstream.name,
        timeouts=upstream.timeouts,
        max_retries=upstream.max_retries,
        asks_usage=upstream.asks_usage,
        price=upstream.prices.get(model or asked),
    )


def _at_node(route: Route, run_id: str, timeouts: Timeouts) -> Destination:
    target = choose(route, run_id)
    return Destination(
        base_url=f"{target.node_url}/v1",
        auth=None,
        model=target.served_name,
        name=target.node_url,
        model_version_id=UUID(target.model_version_id),
        version=target.version,
        deployment_id=UUID(route.deployment_id),
        is_canary=target is route.canary,
        timeouts=timeouts,
    )


def _auth(kind: str, credential: str) -> tuple[bytes, bytes]:
    if kind == "bearer":
        return b"authorization", b"Bearer " + credential.encode()
    return kind.encode(), credential.encode()
