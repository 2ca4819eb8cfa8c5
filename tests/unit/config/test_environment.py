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
        console_port=9001,
        policy_port=65535,
        otlp_endpoint="http://collector.example.com:4318",
        base_model=Path("/srv/models/base"),
        first_byte_timeout_s=0.5,
        idle_timeout_s=90.0,
        spool_max_bytes=1 << 20,
    )
    assert (env.spool, env.objects) == (Path("/srv/ratchet/spool"), Path("/srv/ratchet/objects"))


def test_an_empty_variable_is_like_an_absent_one() -> None:
    assert environment.read(dict.fromkeys(TOLD, "")) == environment.read({})


def test_without_urls_the_servers_are_our_own_on_sockets_of_this_home() -> None:
    env = environment.read({"RATCHET_HOME": "/srv/ratchet"})
    assert (env.embedded_postgres, env.embedded_redis) == (True, True)
    assert env.redis_url == f"redis+socket://{env.sockets}/redis.sock"
    assert env.sockets != environment.read({"RATCHET_HOME": "/srv/other"}).sockets


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((port, text) for port in TOLD if port.endswith("_PORT") for text in ("0", "65536", "-1", "8e3", "²", "x")),
        *((name, text) for name in TOLD if name.endswith("_S") for text in ("0", "-1", "nan", "inf", "1e999", "5 min")),
        *(("RATCHET_SPOOL_MAX_BYTES", text) for text in ("0", "-1", "4GiB", "1.5", "²", "9" * 5000)),
    ],
)  # fmt: skip
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
