"""An upstream and a gateway, both on real ports; tests are the client."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from openai import OpenAI

from config import embedded
from config.environment import Environment, read
from release.routing import Route, Target
from tests.fakes.served_gateway import ServedGateway, Tenant, served_gateway
from tests.fakes.upstream import RUNS, FakeUpstream, fake_upstream

CREDENTIAL = "sk-upstream-secret"
OPENING = RUNS[0]["traj"][:2]


@pytest.fixture(scope="module")
def shared_upstream() -> Iterator[FakeUpstream]:
    with fake_upstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(shared_upstream: FakeUpstream) -> FakeUpstream:
    shared_upstream.reset()
    return shared_upstream


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedGateway]:
    folder: Path = tmp_path_factory.mktemp("spool")
    with served_gateway(folder, first_byte_timeout_s=0.6, idle_timeout_s=0.6) as served:
        yield served


@pytest.fixture
def tenant(gateway: ServedGateway, upstream: FakeUpstream) -> Tenant:
    """A project whose calls go to the upstream."""
    return gateway.add_tenant(upstream=f"{upstream.origin}/v1", credential=CREDENTIAL)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Environment]:
    """A Redis of the test's own, that it may stop and empty; `tmp_path` is its home."""
    environment = read({"RATCHET_HOME": str(tmp_path), "DATABASE_URL": "postgresql://unused/unused"})
    embedded.start(environment)
    yield environment
    embedded.stop(environment)


def redis_client(store: Environment) -> "redis.Redis":
    return redis.Redis(unix_socket_path=str(store.sockets / "redis.sock"))


@pytest.fixture
def client(gateway: ServedGateway, tenant: Tenant) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.origin}/v1", api_key=tenant.key, max_retries=0) as openai:
        yield openai


def version(name: str, origin: str) -> Target:
    return Target("01a1fe0f-274d-73bb-8e2d-d79aea8436f3", name, f"{name}:abc", origin)


def route(tenant_alias: str, champion: Target, canary: Target | None = None, share: float = 0.0) -> Route:
    return Route(
        project_id="01a1fe0f-274d-73bb-8e2d-d79aea8436f4",
        alias=tenant_alias,
        deployment_id="01a1fe0f-274d-73bb-8e2d-d79aea8436f5",
        champion=champion,
        canary=canary,
        canary_share=share,
        salt="salt",
    )
