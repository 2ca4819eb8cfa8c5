"""The installation's own secrets: made at first use, kept in one file that only its owner can read.

Losing the file makes API keys unknown and provider credentials unreadable, so back it up with the database."""

import base64
import json
import os
import secrets as random
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Keyring:
    django_secret: str
    key_pepper: bytes
    """HMAC key for API keys, 32 bytes."""
    credential_key: bytes
    """Provider credentials are encrypted under a key derived from this; 32 random bytes in url-safe base64."""
    ledger_seed: bytes
    """Ed25519 seed for the ledger's checkpoints, 32 bytes."""

    def __repr__(self) -> str:
        return "Keyring(…)"  # never print a secret by accident


def load(home: Path) -> Keyring:
    """Read the keyring of this home, making it at the first call.

    Raises PermissionError when the file can be read by others."""
    path = home / "keyring.json"
    if not path.exists():
        _create(path)
    if path.stat().st_mode & 0o077:
        raise PermissionError(f"{path} can be read by others: run `chmod 600 {path}`")
    stored = json.loads(path.read_text())
    return Keyring(
        django_secret=stored["django_secret"],
        key_pepper=base64.b64decode(stored["key_pepper"]),
        credential_key=stored["credential_key"].encode(),
        ledger_seed=base64.b64decode(stored["ledger_seed"]),
    )


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "django_secret": random.token_urlsafe(50),
        "key_pepper": base64.b64encode(random.token_bytes(32)).decode(),
        "credential_key": base64.urlsafe_b64encode(random.token_bytes(32)).decode(),
        "ledger_seed": base64.b64encode(random.token_bytes(32)).decode(),
    }
    draft = path.with_suffix(f".{os.getpid()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)  # unlike rename, fails when another process made the keyring first
    except FileExistsError:
        pass
    finally:
        draft.unlink()
