"""The small rules of the gateway's edge: headers, encodings, run names, shipping lag, metrics."""

import gzip
import zlib
from uuid import uuid4

import pytest
import zstandard

from gateway import encodings
from gateway.errors import Refused
from gateway.headers import to_client, to_upstream
from gateway.lag import ShippingLag
from gateway.metrics import Family, Metrics, exposition
from gateway.run_names import Naming, named_run, run_name
from gateway.upstream_settings import InvalidUpstream, checked_base_url


def test_headers_keep_their_bytes_and_their_order() -> None:
    headers = [
        (b"x-b", "é".encode()),
        (b"x-a", b"\xe9"),
        (b"x-a", b"2"),
        (b"authorization", b"Bearer rk"),
        (b"proxy-authorization", b"x"),
        (b"x-ratchet-anything", b"x"),
    ]
    kept = headers[:3]
    assert to_upstream(headers, (b"authorization", b"Bearer sk")) == [*kept, (b"authorization", b"Bearer sk")]
    assert to_upstream(headers, None) == kept
    assert to_upstream(headers, None, without=[b"x-a"]) == kept[:1]


def test_an_upstream_cannot_speak_for_ratchet_nor_for_the_connection() -> None:
    headers = [
        (b"Set-Cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"Connection", b"close, X-Odd"),
        (b"X-Odd", b"1"),
        (b"Transfer-Encoding", b"chunked"),
        (b"x-ratchet-call-id", b"forged"),
    ]
    assert to_client(headers) == [(b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2")]


@pytest.mark.parametrize(
    ("packed", "encoding"),
    [
        (b"text" * 100, ""),
        (b"text" * 100, "identity"),
        (gzip.compress(b"text" * 100), "gzip"),
        (gzip.compress(b"text" * 100), " GZIP "),
        (zlib.compress(b"text" * 100), "deflate"),
        (zlib.compress(b"text" * 100, wbits=-15), "deflate"),
        (zstandard.compress(b"text" * 100), "zstd"),
        (zstandard.compress(b"text" * 60) + zstandard.compress(b"text" * 40), "ZSTD"),
    ],
)
def test_encodings_are_undone(packed: bytes, encoding: str) -> None:
    assert encodings.decode(packed, encoding) == b"text" * 100


@pytest.mark.parametrize(
    ("packed", "encoding"),
    [
        (gzip.compress(b"text" * 1000)[:-9], "gzip"),
        (zstandard.ZstdCompressor(write_checksum=True).compress(b"text" * 1000)[:-2], "zstd"),
    ],
)
def test_of_a_cut_body_is_kept_what_came(packed: bytes, encoding: str) -> None:
    decoded = encodings.decode(packed, encoding)
    assert decoded
    assert (b"text" * 1000).startswith(decoded)


def test_what_cannot_be_decoded_says_so() -> None:
    far = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=24)
    ).compressobj()
    for body, encoding in [
        (b"text", "gzip"),
        (b"\xff\xff", "deflate"),
        (b"text", "br"),
        (b"", "gzip, gzip"),
        (b"text", "zstd"),
        (far.compress(b"text" * (5 << 20)) + far.flush(), "zstd"),
    ]:
        with pytest.raises(encodings.Undecodable):
            encodings.decode(body, encoding)
    with pytest.raises(encodings.Undecodable, match="unfolds"):
        encodings.decode(gzip.compress(b"\0" * 1_000_000), "gzip", limit_bytes=1000)
    with pytest.raises(encodings.Undecodable, match="unfolds"):
        encodings.decode(zstandard.compress(b"\0" * 1_000_000), "zstd", limit_bytes=1000)


def test_a_runs_name_is_looked_for_in_order() -> None:
    header = [(b"x-ratchet-run-id", b"from-header")]
    assert run_name(Naming(header, "from-path", "from-body")) == "from-header"
    assert run_name(Naming([], "from-path", "from-body")) == "from-path"
    assert run_name(Naming([(b"x-ratchet-run-id", b" ")], "", "from-body")) == "from-body"
    assert run_name(Naming([], "", "")) == ""
    with pytest.raises(Refused):
        run_name(Naming([], "x" * 201, ""))
    key = uuid4()
    assert named_run(key, "a") == named_run(key, "a") != named_run(uuid4(), "a")


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({b"helicone-session-id": b"h", b"x-session-id": b"x"}, "h"),
        ({b"x-litellm-session-id": b"s", b"x-litellm-trace-id": b"t"}, "t"),
        ({b"x-acme-session-id": b"a"}, "a"),
        ({b"x-bf-session-id": b"which provider's key", b"x-request-id": b"r"}, ""),
    ],
)
def test_what_agents_tell_other_gateways_names_their_runs(headers: dict[bytes, bytes], name: str) -> None:
    assert run_name(Naming(list(headers.items()), "", "")) == name
    assert run_name(Naming(list(headers.items()), "", "ours")) == "ours"


def test_lag_is_the_age_of_the_oldest_record_that_waits() -> None:
    lag = ShippingLag()
    assert lag.age_s((0, 0), 100.0) == 0
    assert lag.age_s((0, 10), 101.0) == 0
    assert lag.age_s((0, 20), 105.0) == 4
    lag.shipped((0, 10))
    assert lag.age_s((0, 20), 106.0) == 1
    lag.shipped((1, 0))
    assert lag.age_s((1, 0), 107.0) == 0
    assert lag.age_s((1, 5), 108.0) == 0


def test_the_exposition_is_prometheus_text() -> None:
    metrics = Metrics()
    metrics.calls["complete"] += 2
    metrics.refused[401] += 1
    odd = Family("breaker_open", "Ill.", [({"upstream": 'a "name"\n'}, 1.0)])
    bytes_of = Family("spool_bytes", "Bytes.", [({}, 5_000_000_000)])
    text = exposition([*metrics.families(), odd, bytes_of]).decode()
    assert 'ratchet_gateway_breaker_open{upstream="a \\"name\\"\\n"} 1\n' in text
    assert 'ratchet_gateway_calls_total{outcome="complete"} 2\n' in text
    assert 'ratchet_gateway_refused_total{status="401"} 1\n' in text
    assert "ratchet_gateway_spool_bytes 5000000000\n" in text
    assert all(line.startswith(("#", "ratchet_gateway_")) for line in text.splitlines())


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.example.com/v1",
        "ftp://api.example.com/v1",
        "https:///v1",
        "https://api.example.com",
        "https://user:secret@api.example.com/v1",
        "https://api.example.com/v1?key=secret",
        "https://api.example.com/v1#x",
        "https://api.example.com:port/v1",
        "https://api.exa mple.com/v1",
        "https://api.example.com/" + "v" * 500,
    ],
)
def test_a_url_that_cannot_be_an_upstream_is_refused(url: str) -> None:
    with pytest.raises(InvalidUpstream) as raised:
        checked_base_url(url)
    assert "secret" not in str(raised.value)
    assert (
        checked_base_url(" https://api.example.com:8443/openai/v1/ ")
        == "https://api.example.com:8443/openai/v1"
    )
