"""Append-only journals: what each process of the experiment saw, one JSON object a line, one write(2) a line.

A line survives whatever happens to the other processes. Times are CLOCK_MONOTONIC seconds, which all processes of
a machine share and which no clock jump moves."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson


class Journal:
    """The writing end."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, **fields: Any) -> None:
        os.write(self._file, orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE))


class LineCount:
    """How many lines of a growing journal hold a text, without reading any of it twice."""

    def __init__(self, path: Path, text: bytes) -> None:
        self._path = path
        self._text = text
        self._offset = 0
        self._lines = 0

    def now(self) -> int:
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    self._lines += self._text in line
        return self._lines


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Every entry, in the order of writing."""
    with path.open("rb") as file:
        for line in file:
            yield orjson.loads(line)
