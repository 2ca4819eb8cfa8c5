"""The dialects that the gateway speaks."""

from collections.abc import Mapping

from gateway.dialects.base import Dialect
from gateway.dialects.chat import ChatDialect
from gateway.dialects.completions import CompletionsDialect
from gateway.dialects.embeddings import EmbeddingsDialect
from gateway.dialects.messages import MessagesDialect
from gateway.dialects.responses import ResponsesDialect

_ALL: tuple[Dialect, ...] = (
    ChatDialect(),
    ResponsesDialect(),
    CompletionsDialect(),
    EmbeddingsDialect(),
    MessagesDialect(),
)
BY_NAME: Mapping[str, Dialect] = {dialect.name: dialect for dialect in _ALL}
BY_PATH: Mapping[str, Dialect] = {path: dialect for dialect in _ALL for path in dialect.paths}
"""By what stands behind `/v1`; for POST."""
