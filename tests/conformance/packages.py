"""Other people's packages that the checks use, installed at the time of the check and nowhere near the product's own.

Each is pinned by a list beside the code that uses it, and installed again only when the list changes."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def python_with(requirements: Path, place: Path) -> Path:
    """The Python of a virtual environment at `place` that holds what the list names."""
    python = place / "bin" / "python"
    if _is_new(place, requirements):
        run([sys.executable, "-m", "venv", "--clear", str(place)])
        run([*pip(python), "install", "--quiet", "--no-deps", "-r", str(requirements)])
        _remember(place, requirements)
    return python


def source_of(requirement: Path, place: Path, python: Path) -> Path:
    """The unpacked source distribution that the one-line list names, with its hash."""
    if _is_new(place, requirement):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        download = [*pip(python), "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        run([*download, "--require-hashes", "-r", str(requirement), "-d", str(place)])
        (archive,) = place.glob("*.tar.gz")
        shutil.unpack_archive(archive, place, filter="data")
        archive.unlink()
        _remember(place, requirement)
    (folder,) = (entry for entry in place.iterdir() if entry.is_dir())
    return folder


def node_modules(manifest: Path, place: Path) -> Path:
    """The `node_modules` folder of what package.json and its lock name."""
    lock = manifest.with_name("package-lock.json")
    if shutil.which("npm") is None:
        raise SystemExit("make conformance needs Node.js 20 or newer with npm: the JavaScript SDKs run on it")
    if _is_new(place, lock):
        place.mkdir(parents=True, exist_ok=True)
        for file in (manifest, lock):
            shutil.copy(file, place)
        run(["npm", "ci", "--no-audit", "--no-fund", "--silent"], folder=place)
        _remember(place, lock)
    return place / "node_modules"


def pip(python: Path) -> list[str]:
    return [str(python), "-m", "pip", "--disable-pip-version-check"]


def run(command: Sequence[str], *, folder: Path | None = None) -> str:
    """A command's output. Ends the program with what the command complained of."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ... failed:\n{done.stderr.strip()[-2000:]}")
    return done.stdout


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _is_new(place: Path, listed: Path) -> bool:
    mark = place / ".installed"
    return not mark.exists() or mark.read_text() != _digest(listed)


def _remember(place: Path, listed: Path) -> None:
    (place / ".installed").write_text(_digest(listed))
