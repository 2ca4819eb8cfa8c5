"""Digests and safety of model files on disk: what identifies an adapter or a base model, and what may be
loaded at all.

Imports neither Django nor torch, so that the registry, the trainer and the policy server agree on one
digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
# Formats that torch or joblib would unpickle: loading one runs whatever code its author put in.
_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"}
_LOADABLE_SUFFIXES = {".safetensors", ".json", ".jinja", ".txt", ".md", ".model"}


class UnsafeArtifact(ValueError):
    """A model folder that must not be loaded; the message says which file and why."""


def directory_digest(folder: Path) -> str:
    """The sha256 that identifies a folder of model files, as 64 hex digits.

    It is the sha256 of one line per file, sorted by path: `<sha256 of the content>  <path with slashes>\\n`,
    the format of `sha256sum`, so `find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum |
    sha256sum` gives the same answer.

    Raises:
        UnsafeArtifact: the folder is missing, empty, or holds a link or a name with a line break in it.
    """
    if not folder.is_dir():
        raise UnsafeArtifact(f"no such folder: {folder}")
    lines = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or "\n" in name or "\\" in name:
            raise UnsafeArtifact(
                f"{name!r} in {folder} is a link or has a character that a digest line cannot hold"
            )
        if path.is_file():
            lines.append((name, hashlib.sha256(path.read_bytes()).hexdigest()))
    if not lines:
        raise UnsafeArtifact(f"empty folder: {folder}")
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(lines))
    return hashlib.sha256(listing.encode()).hexdigest()


def check_adapter(folder: Path) -> None:
    """Refuse anything but a LoRA adapter in safetensors: by the files' names and by what the files are.

    Raises:
        UnsafeArtifact: a pickled or unexpected file, no weights, no configuration, or a file that only claims
            to be safetensors.
    """
    _check_files(folder)
    for required in (WEIGHTS_FILE, CONFIG_FILE):
        if not (folder / required).is_file():
            raise UnsafeArtifact(f"no {required} in {folder}")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        kind, rank = config["peft_type"], config["r"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnsafeArtifact(f"{CONFIG_FILE} in {folder} is not an adapter configuration") from error
    if kind != "LORA" or not isinstance(rank, int):
        raise UnsafeArtifact(f"{folder} is a {kind} adapter; only LORA is served")
    if config.get("auto_mapping") or config.get("use_dora") or config.get("modules_to_save"):
        raise UnsafeArtifact(f"{folder} uses auto_mapping, DoRA or modules_to_save, which are not served")


def check_base_model(folder: Path) -> None:
    """Refuse a base model that is not plain safetensors, or that would run code of its own.

    Raises:
        UnsafeArtifact: missing, pickled, or its configuration asks for remote code.
    """
    _check_files(folder)
    if not (folder / "config.json").is_file():
        raise UnsafeArtifact(f"no config.json in {folder}")
    if not any(folder.glob("*.safetensors")):
        raise UnsafeArtifact(f"no safetensors weights in {folder}")
    if "auto_map" in json.loads((folder / "config.json").read_text()):
        raise UnsafeArtifact(f"config.json in {folder} asks for code of its own (auto_map)")


def _check_files(folder: Path) -> None:
    if not folder.is_dir():
        raise UnsafeArtifact(f"no such folder: {folder}")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix in _PICKLE_SUFFIXES:
            raise UnsafeArtifact(f"{name} in {folder} is a pickled file; only safetensors is loaded")
        if path.is_symlink() or (path.is_file() and path.suffix not in _LOADABLE_SUFFIXES):
            raise UnsafeArtifact(f"{name} in {folder} is not a file that a model needs")
        if path.suffix == ".safetensors":
            _check_safetensors(path)


def _check_safetensors(path: Path) -> None:
    """A safetensors file starts with the length of its JSON header, then the header; a renamed pickle does
    not."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(path.stat().st_size, 100_000_000):
            raise UnsafeArtifact(f"{path.name} in {path.parent} is not a safetensors file")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise UnsafeArtifact(f"{path.name} in {path.parent} is not a safetensors file") from error
    if not isinstance(header, dict):
        raise UnsafeArtifact(f"{path.name} in {path.parent} is not a safetensors file")
