"""Splicing is what a JSON parser would see as changing one member, and leaves every other byte alone."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import splice

texts = st.text(alphabet=st.sampled_from('model"\\{}[]:,é\u2028🦊\n\t /'), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | st.just("model"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | st.just("model"), inner, max_size=4),
    max_leaves=20,
)
objects = st.dictionaries(texts, values, max_size=6)
# What JSON writers of this world put between tokens.
writers = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "indent": st.none() | st.integers(0, 2),
        "separators": st.sampled_from([None, (",", ":"), (" , ", "\t:\n")]),
    }
)


def placed(document: dict[str, Any], position: int, value: Any) -> dict[str, Any]:
    """`document` with a member `model` at a position."""
    members = [item for item in document.items() if item[0] != "model"]
    members.insert(min(position, len(members)), ("model", value))
    return dict(members)


@given(document=objects, position=st.integers(0, 6), model=texts, wanted=texts, writer=writers)
def test_only_the_member_changes(
    document: dict[str, Any], position: int, model: str, wanted: str, writer: dict[str, Any]
) -> None:
    whole = placed(document, position, model)
    body = json.dumps(whole, **writer).encode()
    spliced = splice.replace_string(body, "model", wanted)
    assert json.loads(spliced) == {**whole, "model": wanted}
    assert list(json.loads(spliced)) == list(whole)
    undone = splice.replace_string(spliced, "model", model)
    assert json.loads(undone) == json.loads(body)


@given(document=objects, position=st.integers(0, 6), old=values, new=values, writer=writers)
def test_a_value_of_any_kind_is_set(
    document: dict[str, Any], position: int, old: Any, new: Any, writer: dict[str, Any]
) -> None:
    whole = placed(document, position, old)
    body = json.dumps(whole, **writer).encode()
    assert json.loads(splice.set_member(body, "model", json.dumps(new).encode())) == {**whole, "model": new}


@given(document=objects, value=values, writer=writers, around=st.sampled_from(["", " ", "\r\n\t"]))
def test_what_was_appended_is_removed_to_the_byte(
    document: dict[str, Any], value: Any, writer: dict[str, Any], around: str
) -> None:
    document.pop("model", None)
    body = (around + json.dumps(document, **writer) + around).encode()
    longer = splice.append_member(body, "model", json.dumps(value).encode())
    assert list(json.loads(longer).items()) == [*document.items(), ("model", json.loads(json.dumps(value)))]
    assert splice.remove_member(longer, "model") == body


@given(document=objects, position=st.integers(0, 6), value=values, writer=writers)
def test_a_removed_member_was_never_written(
    document: dict[str, Any], position: int, value: Any, writer: dict[str, Any]
) -> None:
    writer["indent"] = None  # a writer that breaks lines breaks one less
    whole = placed(document, position, value)
    document.pop("model", None)
    assert (
        splice.remove_member(json.dumps(whole, **writer).encode(), "model")
        == json.dumps(document, **writer).encode()
    )


@given(value=values, writer=writers)
def test_members_are_found_at_their_depth(value: Any, writer: dict[str, Any]) -> None:
    def depths(part: Any, depth: int) -> list[tuple[int, Any]]:
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
        own = [(depth + 1, part["model"])] if isinstance(part, dict) and "model" in part else []
        return own + [found for member in inner for found in depths(member, depth + 1)]

    body = json.dumps({"all": value}, **writer).encode()
    found = [
        (depth, json.loads(body[member.value_start : member.value_end]))
        for depth in range(1, 30)
        for member in splice.find(body, "model", depth=depth)
    ]
    expected = json.loads(json.dumps(depths({"all": value}, 0)))
    assert sorted(found, key=repr) == sorted(((depth, value) for depth, value in expected), key=repr)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"a"}', b'{"model":"X"}'),
        (b' {\n"model"\t: "a" , "n": 1.50}', b' {\n"model"\t: "X" , "n": 1.50}'),
        (b'{"a":{"model":"a"},"model":"a"}', b'{"a":{"model":"a"},"model":"X"}'),
        (b'{"a":["model","a"],"model":"a"}', b'{"a":["model","a"],"model":"X"}'),
        (b'{"x":"model","model":"a"}', b'{"x":"model","model":"X"}'),
        (b'{"x":"\\"model\\":\\"b\\"","model":"a"}', b'{"x":"\\"model\\":\\"b\\"","model":"X"}'),
        (b'{"x\\"model":"b","model":"a"}', b'{"x\\"model":"b","model":"X"}'),
        (b'{"x":"\\\\","model":"a\\"b"}', b'{"x":"\\\\","model":"X"}'),
        (b'{"mod\\u0065l":"a"}', b'{"mod\\u0065l":"X"}'),
        (b'{"\\u006D\\u006fdel":"a","model":"b"}', b'{"\\u006D\\u006fdel":"X","model":"X"}'),
        (b'{"model":"a","model":"b"}', b'{"model":"X","model":"X"}'),
        (b'{"\\ud800":"a","model":"a"}', b'{"\\ud800":"a","model":"X"}'),
        (b'{"models":"a","model":"a"}', b'{"models":"a","model":"X"}'),
        (b'{"model":4}', b'{"model":4}'),
        (b"{}", b"{}"),
    ],
)
def test_the_odd_places(body: bytes, expected: bytes) -> None:
    assert splice.replace_string(body, "model", "X") == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":1}', b"{}"),
        (b'{ "model":1 }', b"{  }"),
        (b'{"model":1,"a":2}', b'{"a":2}'),
        (b'{"model":1 , "a":2}', b'{"a":2}'),
        (b'{"a":2 , "model":[{"model":1}] }', b'{"a":2 }'),
        (b'{"model":1,"model":2,"a":3}', b'{"a":3}'),
        (b'{"model":1,"a":3,"model":2}', b'{"a":3}'),
        (b'{"model":1,"model":2}', b"{}"),
    ],
)
def test_a_members_comma_goes_with_it(body: bytes, expected: bytes) -> None:
    assert splice.remove_member(body, "model") == expected


@given(st.binary(max_size=60) | st.text('{}[]":,\\model 1', max_size=60).map(str.encode))
def test_what_is_not_json_is_malformed_at_worst(body: bytes) -> None:
    for change in (splice.remove_member, lambda body, name: splice.set_member(body, name, b"1")):
        with contextlib.suppress(splice.Malformed):
            change(body, "model")
