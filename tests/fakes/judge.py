"""A judge's model server that is gullible: it obeys every instruction that does not stand inside a data block.

Where the prompt marks no block, or lets a record close it, records can order it about. `honest` is what it thinks of a
record when nobody tells it what to say."""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OBEYED = re.compile(
    r"answer yes|say yes|verdict\W+yes|\"score\": 1|perfect score|solution:|thought process:|you are now",
    re.I,
)
QUESTION = re.compile(r"^- ([a-z0-9_-]+): ", re.M)


@dataclass
class FakeJudge:
    """Answers chats; `requests` are those that it got."""

    honest: Callable[[str], float]
    """The text of a record -> 0 to 1."""
    obeyed: re.Pattern[str] = OBEYED
    """What it takes for an order."""
    is_hijacked: bool = False
    """Obeys records wherever they stand."""
    first_wins: bool = False
    """Prefers whatever it reads first."""
    status: int = 200
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def answer(self, messages: list[dict[str, str]]) -> str:
        """What the model says to a chat."""
        whole = "\n".join(message["content"] for message in messages)
        outside, data = _split(messages)
        is_ordered = bool(
            self.obeyed.search(whole if self.is_hijacked else outside.replace(messages[0]["content"], ""))
        )
        if isinstance(data, dict) and "records" in data:
            scores = [
                {
                    "record": name,
                    "reason": "Read it.",
                    "score": 1.0 - place / 10
                    if self.first_wins
                    else 1.0
                    if is_ordered
                    else self.honest(str(record)),
                }
                for place, (name, record) in enumerate(data["records"].items())
            ]
            return json.dumps({"scores": scores})
        names = QUESTION.findall(messages[0]["content"]) or ["good"]
        first = next(name for name in names if name != "control")
        is_good = self.honest(whole if data is None else str(data)) >= 0.5
        answers = [
            {
                "question": name,
                "reason": "Read it.",
                "verdict": "yes"
                if is_ordered or (name != "control" and (name == first if self.first_wins else is_good))
                else "no",
            }
            for name in names
        ]
        return json.dumps({"answers": answers})


def _split(messages: list[dict[str, str]]) -> tuple[str, Any]:
    """What stands outside a data block, and what in it."""
    boundary = re.search(r"boundary ([0-9a-f]{32})", messages[0]["content"])
    user = messages[-1]["content"]
    mark = boundary[1] if boundary else ""
    block = re.match(rf"{mark}\n(.*?)\n{mark}(.*)", user, re.DOTALL) if mark else None
    if block is None:
        return "\n".join(message["content"] for message in messages), None
    outside = messages[0]["content"] + block[2]
    try:
        return outside, json.loads(block[1])
    except ValueError:
        return outside + block[1], None


class JudgeServer:
    """The fake behind a port of its own."""

    def __init__(self, fake: FakeJudge) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                fake.requests.append(body)
                fake.keys.append(self.headers.get("authorization", ""))
                answer = {
                    "choices": [{"message": {"role": "assistant", "content": fake.answer(body["messages"])}}],
                    "usage": {"prompt_tokens": 1000, "completion_tokens": 200},
                }
                content = json.dumps(answer).encode()
                self.send_response(fake.status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
