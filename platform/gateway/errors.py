"""What the gateway itself answers when it cannot relay: the provider's error shape, one sentence on what to do.

An error of the upstream is not made here: its bytes pass through."""

from collections.abc import Sequence
from typing import Any

import orjson


class Refused(Exception):
    """The call is answered by the gateway. `message` is for the developer who reads it; it never holds a
    secret."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = headers
        """Of the answer, beside those that every one has."""

    def body(self, path: str = "") -> bytes:
        """`{"error": {"message", "type", "param", "code"}}`, as OpenAI's SDKs parse it; below `/v1/messages` also with
        the member by which Anthropic's SDKs know an error."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        document: dict[str, Any] = {"error": error}
        if path.startswith("/v1/messages"):
            document = {"type": "error", **document}
        return orjson.dumps(document)


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> Refused:
    """400: the request cannot be understood."""
    return Refused(400, message, param=param, code=code)


def unprocessable(message: str, *, param: str) -> Refused:
    """422: JSON, and a field of it is wrong."""
    return Refused(422, message, param=param, code="invalid_value")
