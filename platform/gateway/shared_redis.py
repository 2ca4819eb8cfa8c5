"""How a gateway reaches Redis, which it shares with others and never depends on. What is exchanged there is the
business of `gateway.limiter` and `gateway.run_memory`."""

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

RECONNECT_INTERVAL_S = 1.0
SOCKET_TIMEOUT_S = 0.5


def connect(redis_url: str) -> Redis:
    """A client that gives up at the first failure: who asks again, and when, is its user's business."""
    return Redis.from_url(
        redis_url.replace("redis+socket://", "unix://", 1),  # Celery's spelling of it
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
