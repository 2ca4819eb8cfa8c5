"""What the dialects' requests have in common: the model's name, the run's name, whether the call may be learnt from,
the question for usage."""

from typing import Any

from gateway import splice
from gateway.errors import bad_request


def model_of(document: dict[str, Any]) -> str:
    """Raises Refused (400) when the request names no model."""
    model = document.get("model")
    if not isinstance(model, str) or not model:
        raise bad_request("The field `model` must name a model, as text.", param="model")
    return model


def run_id_of(document: dict[str, Any]) -> str:
    """The caller's own name for the run: `metadata.run_id`, or the member by which other gateways are told."""
    metadata = document.get("metadata")
    run_id = metadata.get("run_id") if isinstance(metadata, dict) else None
    names = [run_id, document.get("tensorzero::episode_id"), document.get("litellm_session_id")]
    return next((name for name in names if isinstance(name, str) and name), "")


def is_opted_out(document: dict[str, Any]) -> bool:
    """Whether `metadata.ratchet_training` is `off`."""
    metadata = document.get("metadata")
    return isinstance(metadata, dict) and metadata.get("ratchet_training") == "off"


def with_usage(body: bytes, document: dict[str, Any]) -> bytes | None:
    """The request with `stream_options.include_usage` set; None when the client asks for it itself, or asks in a
    shape that the upstream is to judge."""
    if "stream_options" not in document:
        return splice.append_member(body, "stream_options", b'{"include_usage":true}')
    options = document["stream_options"]
    if options is None:
        return splice.set_member(body, "stream_options", b'{"include_usage":true}')
    if not isinstance(options, dict) or options.get("include_usage") not in (None, False):
        return None
    found = splice.find(body, "stream_options")[-1]  # the one that the parsed document shows
    old = body[found.value_start : found.value_end]
    change = splice.set_member if "include_usage" in options else splice.append_member
    return splice.set_member(body, "stream_options", change(old, "include_usage", b"true"))


def with_true(body: bytes, document: dict[str, Any], member: str) -> bytes | None:
    """The request with `member` set to true; None when the client set it so, or to something that the upstream is to
    judge."""
    if member not in document:
        return splice.append_member(body, member, b"true")
    if document[member] not in (None, False):
        return None
    return splice.set_member(body, member, b"true")
