"""Differential replay: recorded exchanges with OpenAI, sent straight to a provider that answers as recorded and once
more through the gateway. The client and the provider see the same bytes, and what was captured is what OpenAI's own
SDK reads in the recording."""

import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from openai._streaming import SSEDecoder
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from telemetry import exchange
from telemetry.records import BeginRecord, EndRecord
from tests.fakes.served_gateway import served_gateway, wait_until

GOLDEN = Path(__file__).parents[2] / "golden" / "openai_recorded.jsonl.gz"
with gzip.open(GOLDEN) as lines:
    RECORDED: list[dict[str, Any]] = [json.loads(line) for line in lines]
NUMBERS = range(len(RECORDED))
DIALECTS = {"/v1/chat/completions": "chat", "/v1/responses": "responses", "/v1/embeddings": "embeddings"}
OF_THE_CONNECTION = {"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"}
PIECE_BYTES = 701


@dataclass(frozen=True)
class Seen:
    """One way of one exchange: what the client got, and the body that the provider got."""

    answer: httpx.Response
    body: bytes
    asked: bytes


@dataclass(frozen=True)
class Replayed:
    direct: list[Seen]
    relayed: list[Seen]
    records: dict[UUID, list[Any]]

    def captured(self, number: int) -> tuple[BeginRecord, EndRecord]:
        begin, end = self.records[UUID(self.relayed[number].answer.headers["x-ratchet-call-id"])]
        return begin, end


class Provider(BaseHTTPRequestHandler):
    """Answers as recorded: JSON with its length, streams in chunks that fall where they fall."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    asked: list[bytes]

    def _answer(self) -> None:
        recorded = RECORDED[int(self.headers["x-recorded"])]
        self.asked.append(self.rfile.read(int(self.headers.get("content-length", 0))))
        body = recorded["response_body"].encode()
        is_stream = recorded["response_kind"] == "sse"
        self.send_response_only(recorded["status"])
        for name, value in recorded["response_headers"].items():
            if name not in OF_THE_CONNECTION:
                self.send_header(name, value)
        if is_stream:
            self.send_header("transfer-encoding", "chunked")
        else:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if not is_stream:
            self.wfile.write(body)
            return
        for start in range(0, len(body), PIECE_BYTES):
            piece = body[start : start + PIECE_BYTES]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_DELETE = _answer

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replayed]:
    asked: list[bytes] = []
    handler = type("RecordedProvider", (Provider,), {"asked": asked})
    provider = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    provider.daemon_threads = True
    thread = threading.Thread(target=provider.serve_forever, daemon=True)
    thread.start()
    direct = f"http://127.0.0.1:{provider.server_port}"
    with (
        served_gateway(tmp_path_factory.mktemp("spool")) as gateway,
        httpx.Client(headers={"accept-encoding": "identity"}) as client,
    ):
        tenant = gateway.add_tenant(upstream=f"{direct}/v1", credential="sk-upstream")

        def send(origin: str, key: str, number: int) -> Seen:
            recorded = RECORDED[number]
            body = recorded["request_body"].encode()
            headers = {"authorization": f"Bearer {key}", "x-recorded": str(number)}
            if body:
                headers["content-type"] = _media_type(body)
            with client.stream(
                recorded["method"], origin + recorded["path"], content=body, headers=headers
            ) as answer:
                received = b"".join(answer.iter_raw())
            return Seen(answer, received, asked[-1])

        pairs = [(send(direct, "sk", n), send(gateway.origin, tenant.key, n)) for n in NUMBERS]
        wait_until(lambda: len(gateway.records()) == 2 * len(RECORDED), timeout_s=20)
        records: dict[UUID, list[Any]] = {}
        for record in gateway.records():
            assert isinstance(record, BeginRecord | EndRecord)
            records.setdefault(record.call_id, []).append(record)
        yield Replayed([pair[0] for pair in pairs], [pair[1] for pair in pairs], records)
    provider.shutdown()
    provider.server_close()
    thread.join(10)


def _media_type(body: bytes) -> str:
    first_line = body.partition(b"\r\n")[0].decode()
    is_form = first_line.startswith("--")
    return f"multipart/form-data; boundary={first_line[2:]}" if is_form else "application/json"


def headers_of(answer: httpx.Response) -> list[tuple[str, str]]:
    return sorted(
        (name, value)
        for name, value in answer.headers.multi_items()
        if name not in OF_THE_CONNECTION and not name.startswith("x-ratchet-")
    )


@pytest.mark.parametrize("number", NUMBERS)
def test_both_sides_see_the_same_bytes(replayed: Replayed, number: int) -> None:
    direct, relayed = replayed.direct[number], replayed.relayed[number]
    assert direct.body == RECORDED[number]["response_body"].encode()
    assert relayed.body == direct.body
    assert relayed.answer.status_code == direct.answer.status_code == RECORDED[number]["status"]
    assert headers_of(relayed.answer) == headers_of(direct.answer)
    assert relayed.asked == direct.asked


@dataclass(frozen=True)
class Reading:
    """What OpenAI's SDK reads in an answer."""

    response_id: str
    finish_reason: str
    tool_calls: int
    text: str
    tokens: tuple[int | None, int | None, int | None, int | None]
    """Of the prompt, of the completion, cached, of reasoning."""


def read_by_the_sdk(recorded: dict[str, Any]) -> Reading:
    dialect = DIALECTS[recorded["path"]]
    events = None
    if recorded["response_kind"] == "sse":
        decoded = SSEDecoder().iter_bytes(iter([recorded["response_body"].encode()]))
        events = [event.json() for event in decoded if event.data != "[DONE]"]
    document = None if events else json.loads(recorded["response_body"])
    if dialect == "chat":
        return _chat(_accumulated(events) if events else ChatCompletion.construct(**document))
    if dialect == "responses":
        return _response(Response.construct(**(events[-1]["response"] if events else document)))
    usage = CreateEmbeddingResponse.construct(**document).usage
    return Reading("", "", 0, "", (usage.prompt_tokens, None, None, None))


def _accumulated(events: list[Any]) -> ChatCompletion:
    chunks = [ChatCompletionChunk.construct(**event) for event in events]
    state = ChatCompletionStreamState()
    for chunk in chunks:
        state.handle_chunk(chunk)
    completion = state.current_completion_snapshot
    # The SDK forgets the usage again when a chunk without any follows, e.g. with the moderation's result.
    completion.usage = next(chunk.usage for chunk in reversed(chunks) if chunk.usage)
    return completion


def _chat(completion: ChatCompletion) -> Reading:
    choice, usage = completion.choices[0], completion.usage
    assert usage is not None
    return Reading(
        completion.id,
        choice.finish_reason or "",
        len(choice.message.tool_calls or []),
        choice.message.content or "",
        (
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None,
            usage.completion_tokens_details.reasoning_tokens if usage.completion_tokens_details else None,
        ),
    )


def _response(response: Response) -> Reading:
    usage = response.usage
    reason = response.incomplete_details.reason if response.incomplete_details else None
    # A background answer is not there yet.
    has_ended = response.status not in {"queued", "in_progress"}
    calls = [
        item for item in response.output if item.type.endswith("_call") and getattr(item, "call_id", None)
    ]
    details = (
        (usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens)
        if usage
        else ()
    )
    return Reading(
        response.id,
        reason or (response.status or "" if has_ended else ""),
        len(calls),
        response.output_text,
        (usage.input_tokens, usage.output_tokens, *details) if usage else (None, None, None, None),
    )


READ = [n for n in NUMBERS if RECORDED[n]["method"] == "POST" and RECORDED[n]["path"] in DIALECTS]


@pytest.mark.parametrize("number", READ)
def test_what_is_captured_is_what_the_sdk_reads(replayed: Replayed, number: int) -> None:
    recorded = RECORDED[number]
    begin, end = replayed.captured(number)
    asked = json.loads(recorded["request_body"])
    assert (begin.dialect, begin.model_requested) == (DIALECTS[recorded["path"]], asked["model"])
    assert begin.stream is (asked.get("stream") is True)
    assert begin.request == recorded["request_body"].encode()
    assert end.response == recorded["response_body"].encode()
    assert (end.status_code, end.hidden) == (recorded["status"], ())
    if recorded["status"] >= 400:
        assert (end.outcome, end.response_id, end.prompt_tokens) == ("upstream_error", "", None)
        return
    reading = read_by_the_sdk(recorded)
    assert end.outcome == "complete"
    assert (
        Reading(
            end.response_id,
            end.finish_reason,
            end.tool_call_count,
            _text(exchange.answer_message(end.response, begin.dialect)),
            (end.prompt_tokens, end.completion_tokens, end.cached_tokens, end.reasoning_tokens),
        )
        == reading
    )


def _text(message: dict[str, Any] | None) -> str:
    content = message["content"] if message else None
    return "".join(part["text"] for part in content) if isinstance(content, list) else content or ""


@pytest.mark.parametrize("number", sorted(set(NUMBERS) - set(READ)))
def test_what_no_dialect_reads_leaves_no_content_behind(replayed: Replayed, number: int) -> None:
    begin, end = replayed.captured(number)
    assert (begin.dialect, begin.request, end.response) == ("", b"", b"")
    assert (begin.method, end.status_code) == (RECORDED[number]["method"], RECORDED[number]["status"])
