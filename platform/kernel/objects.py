"""The object store: whole files by relative location, written once and read as a stream.

`LargeObjects` is what frozen data sets ask for; a local folder keeps it here, a bucket in `kernel.bucket`. Job folders
and adapters are files that other processes open, so they always lie in the local folder."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Protocol


class ObjectMissing(Exception):
    """There is no object there, or the store did not give it; the sentence says which."""


class Writer(Protocol):
    """Takes an object's bytes in order."""

    def write(self, content: bytes, /) -> object: ...


class LargeObjects(Protocol):
    """Objects that may be larger than memory."""

    def writing(self, location: str) -> AbstractContextManager[Writer]:
        """Write an object. It exists, whole and durable, once the block is left without an exception; else it never
        did."""
        ...

    def chunks(self, location: str) -> Iterator[bytes]:
        """The object's bytes, in chunks of any size. Raises ObjectMissing."""
        ...


class ObjectStore:
    """Files below `root`. Locations are relative, use `/`, and may not leave the root."""

    CHUNK_BYTES = 1 << 20

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, location: str) -> Path:
        """The absolute path of a location. Raises ValueError for one that leaves the root."""
        path = (self.root / location).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise ValueError(f"location {location!r} leaves the object store")
        return path

    def write(self, location: str, content: bytes) -> Path:
        """Write a whole file durably and atomically; readers see the old file or the new one."""
        with self.writing(location) as file:
            file.write(content)
        return self.path(location)

    @contextmanager
    def writing(self, location: str) -> Iterator[IO[bytes]]:
        path = self.path(location)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with draft.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
            _sync_folder(path.parent)
        finally:
            draft.unlink(missing_ok=True)

    def chunks(self, location: str) -> Iterator[bytes]:
        try:
            with self.path(location).open("rb") as file:
                while chunk := file.read(self.CHUNK_BYTES):
                    yield chunk
        except OSError as error:
            raise ObjectMissing(f"{location} cannot be read: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The lines of a text that comes in chunks, each without its line end. What stands behind the last line end
    counts as a line."""
    rest: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        for line in others:
            yield b"".join(rest)
            rest = [line]
    if last := b"".join(rest):
        yield last
