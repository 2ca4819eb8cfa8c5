"""The process environment as types: what is told, what is assumed, and which variable a bad value is blamed on."""

from pathlib import Path

import pytest

from config import environment

TOLD = {
    "RATCHET_HOME": "/srv/ratchet",
    "DATABASE_URL": "postgresql://db.example.com/ratchet",
    "REDIS_URL": "redis://cache.example.com/0",
    "RATCHET_GATEWAY_PORT": "9000",
    "RATCHET_CONSOLE_PORT": "9001",
    "RATCHET_POLICY_PORT": "65535",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.example.com:4318",
    "RATCHET_BASE_MODEL": "/srv/models/base",
    "RATCHET_FIRST_BYTE_TIMEOUT_S": "0.5",
    "RATCHET_IDLE_TIMEOUT_S": "90",
    "RATCHET_SPOOL_MAX_BYTES": "1048576",
    "RATCHET_OTEL_CONTENT": "1",
    "RATCHET_CONNECT_TIMEOUT_S": "3",
    "RATCHET_ON_DISCONNECT": "drain",
    "RATCHET_DRAIN_MAX_BYTES": "4096",
    "RATCHET_DRAIN_MAX_S": "2.5",
    "RATCHET_FSYNC_INTERVAL_MS": "2.5",
    "RATCHET_CAPTURE_SYNC": "strict",
    "RATCHET_MAX_LAG_S": "60",
    "RATCHET_RETENTION_MONTHS": "13",
    "RATCHET_GATEWAY_PROCESSES": "4",
    "RATCHET_OBJECT_STORE": "s3://models/ratchet",
    "RATCHET_OBJECT_STORE_ENDPOINT": "http://objects.example.com:9000",
}


def test_what_is_told_is_taken() -> None:
    env = environment.read(TOLD)
    assert env == environment.Environment(
        home=Path("/srv/ratchet"),
        database_url="postgresql://db.example.com/ratchet",
        redis_url="redis://cache.example.com/0",
        embedded_postgres=False,
        embedded_redis=False,
        gateway_port=9000,
        gateway_processes=4,
        console_port=9001,
        policy_port=65535,
        otlp_endpoint="http://collector.example.com:4318",
        base_model=Path("/srv/models/base"),
        first_byte_timeout_s=0.5,
        idle_timeout_s=90.0,
        spool_max_bytes=1 << 20,
        otel_content=True,
        connect_timeout_s=3.0,
        drain_on_disconnect=True,
        drain_max_bytes=4096,
        drain_max_s=2.5,
        fsync_interval_s=0.0025,
        strict_capture=True,
        max_lag_s=60.0,
        retention_months=13,
        object_store="s3://models/ratchet",
        object_store_endpoint="http://objects.example.com:9000",
    )
    assert (env.spool, env.objects) == (Path("/srv/ratchet/spool"), Path("/srv/ratchet/objects"))


def test_an_empty_variable_is_like_an_absent_one() -> None:
    assert environment.read(dict.fromkeys(TOLD, "")) == environment.read({})


def test_without_urls_the_servers_are_our_own_on_sockets_of_this_home() -> None:
    env = environment.read({"RATCHET_HOME": "/srv/ratchet"})
    assert (env.embedded_postgres, env.embedded_redis) == (True, True)
    assert env.redis_url == f"redis+socket://{env.sockets}/redis.sock"
    assert env.sockets != environment.read({"RATCHET_HOME": "/srv/other"}).sockets


NO_VALUE = {
    "_PORT": ("0", "65536", "-1", "8e3", "²", "x"),
    "_S": ("0", "-1", "nan", "inf", "1e999", "5 min"),
    "_MS": ("0", "-1", "nan", "inf", "1e999", "10ms"),
    "_BYTES": ("0", "-1", "4GiB", "1.5", "²", "9" * 5000),
    "_CONTENT": ("2", "true", "off"),
    "_DISCONNECT": ("1", "DRAIN"),
    "_SYNC": ("1", "Strict"),
    "_PROCESSES": ("0", "65", "-1", "1.5", "two"),
}
"""Kind of a variable, by how its name ends -> texts that are no value of it."""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (name, text)
        for name in TOLD
        for end, texts in NO_VALUE.items()
        if name.endswith(end)
        for text in texts
    ],
)
def test_a_bad_value_names_its_variable(name: str, text: str) -> None:
    assert environment.read(TOLD)
    with pytest.raises(ValueError, match=f"^{name} must be "):
        environment.read({**TOLD, name: text})


def test_a_very_long_home_still_has_short_sockets() -> None:
    """sun_path holds 108 bytes with its final NUL (unix(7)); PostgreSQL's own name is the longest one here."""
    env = environment.read({"RATCHET_HOME": "/srv/" + "a-long-name/" * 300})
    assert len(bytes(env.sockets / ".s.PGSQL.5432.lock")) < 107
    assert len(bytes(env.sockets / "redis.sock")) < 107
    assert str(env.sockets) in env.redis_url
