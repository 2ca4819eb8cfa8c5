"""The object store: adapters, snapshots, job folders, by relative location below one root.

A local folder today; the two functions are the seam for a bucket."""

import os
from pathlib import Path


class ObjectStore:
    """Files below `root`. Locations are relative, use `/`, and may not leave the root."""

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
        path = self.path(location)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        return path
