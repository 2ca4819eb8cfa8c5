"""Any bytes come back from their skeleton and pieces; what is sent again is recognised."""

import json
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.pieces import LONG_BYTES, cut, unpacked

LONG = "x" * LONG_BYTES

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just(LONG),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
requests = st.dictionaries(st.sampled_from(["messages", "input", "tools", "système", "n"]), json_values)


def rebuilt(body: bytes) -> bytes:
    parts = cut(body)
    skeleton, _ = unpacked(parts.skeleton.packed() + b"answer")
    assert all(sha256(piece).digest() == digest for digest, piece in parts.pieces.items())
    return b"".join(skeleton.parts(parts.pieces))


@given(st.binary(max_size=3 * LONG_BYTES))
def test_any_bytes_come_back(body: bytes) -> None:
    assert rebuilt(body) == body


@given(requests, st.booleans(), st.sampled_from([None, 1, "\t"]), st.binary(max_size=5))
def test_any_request_comes_back_in_any_writing(
    request_: dict[str, object], ascii_only: bool, indent: object, behind: bytes
) -> None:
    body = json.dumps(request_, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")  # type: ignore[arg-type]
    assert rebuilt(body + behind) == body + behind


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [' + b"[" * 50_000 + b"]" * 50_000 + b"]}",
        b'{"messages": [' + b"9" * 10_000 + b"]}",
        b'{"messages": ["' + b"\xff\xfe\x80" * 1000 + b'"]}',
        b'{"messages": [{"a": 1},' + b" " * 2000,
        b'{"input": "' + b"a" * 5000 + b'"}trailing',
        b"[" + b"1," * 1000 + b"1]",
        b"\xef\xbb\xbf{}" * 400,
    ],
)
def test_hostile_bytes_come_back(body: bytes) -> None:
    assert rebuilt(body) == body


def test_long_elements_and_values_are_pieces_and_short_ones_stay() -> None:
    parts = {
        "system": LONG,
        "tools": [{"name": "a"}, {"name": LONG}],
        "messages": ["short", LONG + "2"],
        "n": 1,
    }
    body = json.dumps(parts).encode()
    pieces = [json.loads(piece) for piece in cut(body).pieces.values()]
    assert pieces == [LONG, parts["tools"], LONG + "2"]
    assert len(cut(body).skeleton.text) < 250


def test_bytes_that_are_no_json_are_one_piece() -> None:
    body = b"\x00\xff" * LONG_BYTES
    assert list(cut(body).pieces.values()) == [body]
