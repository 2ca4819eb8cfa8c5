"""What the gateway itself answers when it cannot relay: OpenAI's error shape, one sentence on what to do.

An error of the upstream is not made here: its bytes pass through."""

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
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code

    def body(self) -> bytes:
        """`{"error": {"message", "type", "param", "code"}}`, as OpenAI's SDKs parse it."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> Refused:
    """400: the request cannot be understood."""
    return Refused(400, message, param=param, code=code)


def unprocessable(message: str, *, param: str) -> Refused:
    """422: JSON, and a field of it is wrong."""
    return Refused(422, message, param=param, code="invalid_value")
