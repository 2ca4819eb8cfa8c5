"""Where a call may be sent, in which order: pure data and one pure function over it.

Reads no tables (`gateway.snapshot` fills these types and keeps them in memory), sends nothing (`gateway.relay` walks
the plan). A run keeps its place: the same run id and the same weights give the same plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from release.routing import Route


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
