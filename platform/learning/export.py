"""Snapshots as files that others load: JSONL and Parquet that `datasets` reads unchanged.

Arrow gives all rows one shape and fills what a row lacks with null, so whatever differs from row to row (arguments of
tool calls, parts of content, tools) stays JSON text, and no row has a member that another lacks. Streams: a batch of
rows is in memory at once."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from learning.episodes.document import EpisodeDocument, StepPart

ROWS = 500
"""Rows of a Parquet row group."""

_MESSAGE = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("tool_call_id", pa.string()),
        ("tool_calls", pa.list_(pa.struct([
            ("id", pa.string()), ("type", pa.string()),
            ("function", pa.struct([("name", pa.string()), ("arguments", pa.string())])),
        ]))),
    ]
)  # fmt: skip
_MESSAGES = pa.list_(_MESSAGE)
_COMMON = [
    ("run_id", pa.string()), ("task_key", pa.string()), ("group", pa.string()), ("reward", pa.float64()),
    ("tools", pa.string()),
]  # fmt: skip

SCHEMAS = {
    "episodes": pa.schema([*_COMMON, ("model_version_ids", pa.list_(pa.string())), ("document", pa.string())]),
    "conversations": pa.schema([*_COMMON, ("messages", _MESSAGES)]),
    "steps": pa.schema([
        *_COMMON, ("step", pa.int64()), ("weight", pa.float64()), ("label", pa.bool_()), ("prompt", _MESSAGES),
        ("completion", _MESSAGES),
    ]),
}  # fmt: skip
"""By view: `episodes` is the whole document as JSON text; `conversations` TRL's form for SFT; `steps` its form for KTO,
one row for each answer, with `weight` so that a long run counts as one."""


def rows(documents: Iterable[EpisodeDocument], view: str) -> Iterator[dict[str, Any]]:
    """The rows of a view of SCHEMAS."""
    make = _VIEWS[view]
    for document in documents:
        yield from make(document)


def write_jsonl(documents: Iterable[EpisodeDocument], view: str, path: Path) -> int:
    """Write one JSON object a line; return how many."""
    count = 0
    with path.open("wb") as file:
        for count, row in enumerate(rows(documents, view), start=1):  # noqa: B007 - counted
            file.write(orjson.dumps(row) + b"\n")
    return count


def write_parquet(documents: Iterable[EpisodeDocument], view: str, path: Path) -> int:
    """Write row groups of ROWS; return how many rows."""
    schema, count, waiting = SCHEMAS[view], 0, rows(documents, view)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := list(islice(waiting, ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            count += len(batch)
    return count


def _common(document: EpisodeDocument) -> dict[str, Any]:
    return {
        "run_id": document.run.id,
        "task_key": document.run.task_key,
        "group": document.run.group,
        "reward": document.reward.total,
        "tools": _json(document.tools),
    }


def _episodes(document: EpisodeDocument) -> Iterator[dict[str, Any]]:
    text = document.canonical().decode()
    yield _common(document) | {"model_version_ids": document.model_version_ids, "document": text}


def _conversations(document: EpisodeDocument) -> Iterator[dict[str, Any]]:
    yield _common(document) | {"messages": [_message(one) for one in document.conversation()]}


def _steps(document: EpisodeDocument) -> Iterator[dict[str, Any]]:
    """Each answer with what came before it: tool results are never in what is learnt."""
    answered: list[StepPart] = [step for step in document.steps if step.answer is not None]
    for step in answered:
        yield _common(document) | {
            "step": step.index,
            "weight": 1 / len(answered),
            "label": (document.reward.total or 0.0) > 0,
            "prompt": [_message(one) for one in document.prompt_of(step)],
            "completion": [_message(one) for one in document.path(step.answer)[-1:]],
        }


_VIEWS: dict[str, Callable[[EpisodeDocument], Iterator[dict[str, Any]]]] = {
    "episodes": _episodes,
    "conversations": _conversations,
    "steps": _steps,
}


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """Every message with the same members."""
    content = message.get("content")
    return {
        "role": message["role"],
        "content": content if isinstance(content, str) or content is None else _json(content),
        "tool_call_id": message.get("tool_call_id"),
        "tool_calls": message.get("tool_calls"),
    }


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
