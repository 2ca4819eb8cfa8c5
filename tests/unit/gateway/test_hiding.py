"""What the gateway asks for on its own account: spliced into the request, and gone from the answer to the byte."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.base import Addition
from gateway.dialects.table import BY_NAME

CHAT, COMPLETIONS = BY_NAME["chat"], BY_NAME["completions"]
USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
NASTY = [
    'say "usage": null, ok',
    '"usage":{"prompt_tokens":1},"choices":[]',
    '\\"usage\\":null',
    'data: {"usage":null}\n\ndata: [DONE]\n\n',
    "Grüße 🦊\u2028",
    '{"token_ids":[1],"logprobs":{"content":[]}}',
    "",
]


class Provider:
    """Answers a request as OpenAI does, or as vLLM does for our own nodes, in one way of writing JSON and streams."""

    def __init__(self, texts: list[str], writer: dict[str, Any], newline: str, comments: list[int]) -> None:
        self.texts, self.writer, self.newline, self.comments = texts, writer, newline, comments

    def stream(self, request: bytes) -> bytes:
        asked = json.loads(request)
        has_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        events = []
        for index, text in enumerate(self.texts):
            chunk = {"id": "c1", "choices": [self._choice(asked, {"delta": {"content": text}}, index)]}
            if asked.get("return_token_ids") and not index:
                chunk["prompt_token_ids"] = [1, 2, 3]
            if has_usage:
                chunk["usage"] = None
            events.append(
                self._event(chunk | {"x_trace": {"usage": [1], "seen": None}, "obfuscation": "x" * index})
            )
        if has_usage:
            events.append(self._event({"id": "c1", "choices": [], "usage": USAGE}))
        events.append("data: [DONE]")
        for place in self.comments:
            events.insert(min(place, len(self.texts)), ': "usage": {"choices":[]}')
        return (self.newline * 2).join([*events, ""]).encode()

    def document(self, request: bytes) -> bytes:
        asked = json.loads(request)
        choices = [
            self._choice(asked, {"message": {"content": text}}, index) | {"index": index}
            for index, text in enumerate(self.texts)
        ]
        whole = {"id": "c1", "choices": choices, "usage": USAGE}
        if asked.get("return_token_ids"):
            whole["prompt_token_ids"] = [1, 2, 3]
        return json.dumps(whole | {"system_fingerprint": None}, **self.writer).encode()

    def _choice(self, asked: dict[str, Any], said: dict[str, Any], index: int) -> dict[str, Any]:
        logprobs = {"content": [{"token": '"]}', "logprob": -0.5, "bytes": [34], "top_logprobs": []}]}
        choice = {"index": 0, **said, "logprobs": logprobs if asked.get("logprobs") else None}
        choice["finish_reason"] = None
        if asked.get("return_token_ids"):
            choice["token_ids"] = [5, index]
        return choice

    def _event(self, chunk: dict[str, Any]) -> str:
        return "data: " + json.dumps(chunk, **self.writer)


providers = st.builds(
    Provider,
    texts=st.lists(st.sampled_from(NASTY) | st.text(max_size=8), min_size=1, max_size=4),
    writer=st.fixed_dictionaries(
        {"ensure_ascii": st.booleans(), "separators": st.sampled_from([(",", ":"), (", ", ": ")])}
    ),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    comments=st.lists(st.integers(0, 5), max_size=2),
)
client_requests = st.fixed_dictionaries(
    {"model": st.just("m"), "messages": st.just([{"role": "user", "content": NASTY[1]}])},
    optional={
        "stream_options": st.sampled_from(
            [
                None,
                {},
                {"include_usage": False},
                {"include_usage": None},
                {"include_obfuscation": False},
                {"include_usage": True},
            ]
        ),
        "logprobs": st.sampled_from([None, False, True]),
        "return_token_ids": st.sampled_from([None, False, True]),
        "top_logprobs": st.sampled_from([None, 0]),
        "metadata": st.just({"stream_options": {}, "logprobs": False}),
    },
)


def cut(body: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[start:end] for start, end in pairwise(edges)]


def shown(addition: Addition, pieces: list[bytes]) -> bytes:
    return b"".join(map(addition.hiding.feed, pieces)) + addition.hiding.finish()


def ask(body: bytes, *, is_own_node: bool = False, dialect: Any = CHAT) -> Addition | None:
    addition = dialect.ask_more(body, json.loads(body), asks_usage=True, is_own_node=is_own_node)
    assert addition is None or addition.hidden
    return addition


@given(
    provider=providers,
    request=client_requests,
    is_own_node=st.booleans(),
    places=st.lists(st.integers(0, 5000), max_size=12),
    indent=st.none() | st.just(1),
)
def test_a_stream_is_what_it_would_have_been(
    provider: Provider, request: dict[str, Any], is_own_node: bool, places: list[int], indent: int | None
) -> None:
    original = json.dumps(request | {"stream": True}, indent=indent).encode()
    addition = ask(original, is_own_node=is_own_node)
    asked = json.loads(addition.body if addition else original)
    assert asked["stream_options"]["include_usage"] is True
    assert asked.get("return_token_ids") is (True if is_own_node else request.get("return_token_ids"))
    if addition:
        pieces = cut(provider.stream(addition.body), places)
        assert shown(addition, pieces) == provider.stream(original)


@given(provider=providers, request=client_requests, places=st.lists(st.integers(0, 5000), max_size=5))
def test_a_document_of_our_own_node_is_what_it_would_have_been(
    provider: Provider, request: dict[str, Any], places: list[int]
) -> None:
    request.pop("stream_options", None)
    original = json.dumps(request).encode()
    assert ask(original) is None
    if addition := ask(original, is_own_node=True):
        assert provider.document(addition.body) != provider.document(original)
        assert shown(addition, cut(provider.document(addition.body), places)) == provider.document(original)


def test_every_cut_in_two_and_every_byte_alone() -> None:
    for newline in ("\n", "\r\n", "\r"):
        provider = Provider(NASTY[:2], {"separators": (",", ":")}, newline, [1])
        original = b'{"model":"m","stream":true}'
        expected = provider.stream(original)
        asked = ask(original)
        assert asked is not None
        answer = provider.stream(asked.body)
        for place in range(len(answer) + 1):
            addition = ask(original)
            assert addition is not None
            assert shown(addition, [answer[:place], answer[place:]]) == expected
        addition = ask(original)
        assert addition is not None
        assert shown(addition, [bytes([byte]) for byte in answer]) == expected


def test_nothing_is_held_longer_than_one_event() -> None:
    addition = ask(b'{"model":"m","stream":true}')
    assert addition is not None
    event = b'data: {"choices":[{"delta":{}}],"usage":null}\n\n'
    assert addition.hiding.feed(event) == b'data: {"choices":[{"delta":{}}]}\n\n'
    assert addition.hiding.feed(event[:20]) == b""
    assert addition.hiding.feed(event[20:] + b"data: {") == b'data: {"choices":[{"delta":{}}]}\n\n'
    assert addition.hiding.finish() == b"data: {"


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        # The usage on an event that says something else: only the usage goes.
        (b'data: {"choices":[{"index":0}],"usage":{"a":{"b":[1]}}}\n\n', b'data: {"choices":[{"index":0}]}\n\n'),
        (b'data: {"usage":{"a":1},"choices":[{"index":0}]}\n\n', b'data: {"choices":[{"index":0}]}\n\n'),
        # Azure's first event has no choices and no usage: it stays.
        (b'data: {"choices":[],"prompt_filter_results":[1],"usage":null}\n\n',
         b'data: {"choices":[],"prompt_filter_results":[1]}\n\n'),
        (b'data:{"choices" : [ ] ,"usage":{"a":1}}\r\n\r\n', b""),
        (b': ping\ndata: {"choices":[],"usage":{"a":1}}\n\n', b": ping\n"),
        (b'event: x\nid: 1\ndata: {"choices":[{}],"usage":null}\nretry: 3\n\n',
         b'event: x\nid: 1\ndata: {"choices":[{}]}\nretry: 3\n\n'),
        # Not what was asked for, or no JSON: untouched.
        (b'data: {"a":{"usage":null}}\n\n', b'data: {"a":{"usage":null}}\n\n'),
        (b'data: {"choices":[],\ndata: "usage":{}}\n\n', b'data: {"choices":[],\ndata: "usage":{}}\n\n'),
        (b'data: {"usage": \n\n', b'data: {"usage": \n\n'),
        (b'data: {"usage":[[[\n\n', b'data: {"usage":[[[\n\n'),
        (b'data: {"error":{"message":"\\"usage\\":null"}}\n\n', b'data: {"error":{"message":"\\"usage\\":null"}}\n\n'),
        (b'{"error": "usage"}', b'{"error": "usage"}'),
    ],
)  # fmt: skip
def test_one_event(event: bytes, expected: bytes) -> None:
    addition = ask(b'{"model":"m","stream":true}', dialect=COMPLETIONS)
    assert addition is not None
    assert shown(addition, [event]) == expected


@given(st.binary(max_size=80) | st.text('data:{}[]"usage,\\n choices1\r\n', max_size=80).map(str.encode))
def test_no_bytes_are_lost_that_hold_nothing_to_hide(body: bytes) -> None:
    for is_stream in (True, False):
        request = b'{"model":"m","stream":%s}' % json.dumps(is_stream).encode()
        addition = ask(request, is_own_node=True)
        assert addition is not None
        result = shown(addition, [body])
        if not any(name in body for name in (b'"usage"', b'token_ids"', b'"logprobs"')):
            assert result == body


def test_what_the_client_asks_for_itself_is_not_hidden() -> None:
    own = b'{"model":"m","stream":true,"stream_options":{"include_usage":true},"logprobs":true,"return_token_ids":true}'
    assert ask(own, is_own_node=True) is None
    assert ask(own) is None
    some = ask(b'{"model":"m","logprobs":true}', is_own_node=True)
    assert some is not None
    assert some.hidden == ("token_ids",)
    assert ask(b'{"model":"m"}') is None
    silent = CHAT.ask_more(
        b'{"model":"m","stream":true}', {"stream": True}, asks_usage=False, is_own_node=False
    )
    assert silent is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"stream":true}', b'{"stream":true,"stream_options":{"include_usage":true}}'),
        (b'{ "stream" : true\n}', b'{ "stream" : true,"stream_options":{"include_usage":true}\n}'),
        (b'{"stream_options":null,"stream":true}', b'{"stream_options":{"include_usage":true},"stream":true}'),
        (b'{"stream_options":{ },"stream":true}', b'{"stream_options":{"include_usage":true },"stream":true}'),
        (b'{"stream_options":{"x":1},"stream":true}',
         b'{"stream_options":{"x":1,"include_usage":true},"stream":true}'),
        (b'{"stream_options":{"include_usage":false},"stream":true}',
         b'{"stream_options":{"include_usage":true},"stream":true}'),
        # Wrong, and the upstream is to say so.
        (b'{"stream_options":7,"stream":true}', None),
        (b'{"stream_options":{"include_usage":"yes"},"stream":true}', None),
    ],
)  # fmt: skip
def test_how_usage_is_asked_for(body: bytes, expected: bytes | None) -> None:
    addition = ask(body)
    assert (addition.body if addition else None) == expected


def test_a_request_that_our_node_refuses_stays_refused() -> None:
    addition = ask(b'{"model":"m","top_logprobs":2}', is_own_node=True)
    assert addition is not None
    assert addition.body == b'{"model":"m","top_logprobs":2,"return_token_ids":true}'
    wrong = ask(b'{"model":"m","logprobs":3,"return_token_ids":"x"}', is_own_node=True)
    assert wrong is None


@pytest.mark.parametrize("name", ["responses", "messages", "embeddings"])
def test_dialects_that_report_usage_anyway_ask_for_nothing(name: str) -> None:
    assert ask(b'{"model":"m","stream":true}', dialect=BY_NAME[name], is_own_node=True) is None
