"""Splicing is what a JSON parser would see as setting one member, and leaves every other byte alone."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.splice import replace_string

texts = st.text(alphabet=st.sampled_from('model"\\{}[]:,é\u2028🦊\n\t /'), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | st.just("model"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | st.just("model"), inner, max_size=4),
    max_leaves=20,
)
objects = st.dictionaries(texts, values, max_size=6)


@given(
    document=objects,
    position=st.integers(0, 6),
    model=texts,
    wanted=texts,
    is_ascii=st.booleans(),
    indent=st.none() | st.integers(0, 2),
)
def test_only_the_member_changes(
    document: dict[str, Any], position: int, model: str, wanted: str, is_ascii: bool, indent: int | None
) -> None:
    members = [item for item in document.items() if item[0] != "model"]
    members.insert(min(position, len(members)), ("model", model))
    body = json.dumps(dict(members), ensure_ascii=is_ascii, indent=indent).encode()
    spliced = replace_string(body, "model", wanted)
    assert json.loads(spliced) == {**dict(members), "model": wanted}
    assert list(json.loads(spliced)) == [name for name, _ in members]
    undone = replace_string(spliced, "model", model)
    assert json.loads(undone) == json.loads(body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"a"}', b'{"model":"X"}'),
        (b' {\n"model"\t: "a" , "n": 1.50}', b' {\n"model"\t: "X" , "n": 1.50}'),
        (b'{"a":{"model":"a"},"model":"a"}', b'{"a":{"model":"a"},"model":"X"}'),
        (b'{"a":["model","a"],"model":"a"}', b'{"a":["model","a"],"model":"X"}'),
        (b'{"x":"model","model":"a"}', b'{"x":"model","model":"X"}'),
        (b'{"x":"\\"model\\":\\"b\\"","model":"a"}', b'{"x":"\\"model\\":\\"b\\"","model":"X"}'),
        (b'{"x":"\\\\","model":"a\\"b"}', b'{"x":"\\\\","model":"X"}'),
        (b'{"mod\\u0065l":"a"}', b'{"mod\\u0065l":"X"}'),
        (b'{"model":"a","model":"b"}', b'{"model":"X","model":"X"}'),
        (b'{"\\ud800":"a","model":"a"}', b'{"\\ud800":"a","model":"X"}'),
        (b'{"models":"a","model":"a"}', b'{"models":"a","model":"X"}'),
        (b'{"model":4}', b'{"model":4}'),
        (b"{}", b"{}"),
    ],
)
def test_the_odd_places(body: bytes, expected: bytes) -> None:
    assert replace_string(body, "model", "X") == expected
