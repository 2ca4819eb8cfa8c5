"""What an upstream may be set to: every field of it but its name and its credential, checked once, here.

Does not write anything; `gateway.services` does."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from gateway.credentials import origin
from gateway.dialects.table import BY_NAME

MAX_URL_CHARACTERS = 500

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class InvalidUpstream(ValueError):
    """An upstream cannot be set like this; the sentence begins with the field."""


def checked_base_url(text: str) -> str:
    """The URL without a trailing slash. Raises InvalidUpstream for one that cannot be a provider's base URL."""
    text = text.strip()
    try:
        parts = urlsplit(text)
        port_is_odd = parts.port == 0
    except ValueError as error:
        raise InvalidUpstream(f"base_url: it cannot be read: {error}") from None
    if parts.username is not None or parts.password is not None:
        # Checked first, and the URL is not repeated: it holds a secret.
        raise InvalidUpstream("base_url: it holds a credential: give that separately")
    if parts.scheme not in {"http", "https"}:
        raise InvalidUpstream(f"base_url: it must begin with https:// or http://, not {text!r}")
    if not parts.hostname or port_is_odd or any(character.isspace() for character in text):
        raise InvalidUpstream(f"base_url: it must name a host, not {text!r}")
    if parts.query or parts.fragment:
        raise InvalidUpstream("base_url: it must end with its path: leave out everything from ? or # on")
    if not parts.path.strip("/"):
        raise InvalidUpstream(
            f"base_url: it must include the API's path, usually {text.rstrip('/')}/v1, not only the host"
        )
    if len(text) > MAX_URL_CHARACTERS:
        raise InvalidUpstream(f"base_url: it may have {MAX_URL_CHARACTERS} characters, not {len(text)}")
    if not text.isascii():
        raise InvalidUpstream(f"base_url: write a host beyond ASCII in its xn-- form, not {text!r}")
    try:
        origin(text)
    except ValueError as error:
        raise InvalidUpstream(f"base_url: it cannot be called as it is written: {error}") from None
    return text.rstrip("/")


def _spoken(dialect: str) -> str:
    if dialect not in BY_NAME:
        raise InvalidUpstream(f"serves: {dialect!r} is none of {', '.join(BY_NAME)}")
    return dialect


class PriceSetting(BaseModel):
    """US dollars per million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Dollars
    output: Dollars
    cached_input: Dollars | None = None
    """None: as `input`."""


class UpstreamSettings(BaseModel):
    """The settings of an upstream. Their meaning is told at `gateway.models.Upstream`."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)

    base_url: Annotated[str, AfterValidator(checked_base_url)]
    auth: Literal["bearer", "x-api-key", "api-key"] = "bearer"
    priority: Annotated[int, Field(ge=0, le=1000)] = 0
    serves: tuple[Annotated[str, AfterValidator(_spoken)], ...] = ()
    connect_timeout_s: Seconds | None = None
    first_byte_timeout_s: Seconds | None = None
    idle_timeout_s: Seconds | None = None
    max_retries: Annotated[int, Field(ge=0, le=10)] = 1
    asks_usage: bool = True
    prices: dict[Annotated[str, Field(min_length=1, max_length=200)], PriceSetting] = {}
    is_enabled: bool = True


def parsed(fields: dict[str, object]) -> UpstreamSettings:
    """The settings out of loose values. Raises InvalidUpstream, naming the first field that is wrong."""
    try:
        return UpstreamSettings.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        cause = first.get("ctx", {}).get("error")
        raise InvalidUpstream(str(cause) if cause else f"{where}: {first['msg']}") from None
