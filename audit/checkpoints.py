"""Checkpoints as text: C2SP tlog-checkpoint in a C2SP signed note (Ed25519), byte for byte. Pure.

    <origin>
    <size, decimal>
    <root, base64>
                                     an empty line
    — <name> <base64 of 4 bytes of key id and 64 of signature>

The signature covers everything up to and with the newline before the empty line. Other lines of signatures,
say of witnesses, may follow and are passed over. Our key's name is the log's origin.
Formats: c2sp.org/tlog-checkpoint and c2sp.org/signed-note"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_ED25519 = b"\x01"
_TEXT = re.compile(r"(?P<origin>[^\n ]+)\n(?P<size>0|[1-9][0-9]*)\n(?P<root>[A-Za-z0-9+/]{43}=)\n")


class CheckpointInvalid(ValueError):
    """The text is not a checkpoint, or none of its signatures is by the given key."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The statement that `origin`'s log had `size` leaves under `root` (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def public_key(seed: bytes) -> bytes:
    """The raw Ed25519 public key (32 bytes) of a 32-byte seed."""
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def verifier_key(name: str, public: bytes) -> str:
    """The key as signed notes' tools take it: `<name>+<hex key id>+<base64 of type and key>`."""
    return f"{name}+{_key_id(name, public).hex()}+{base64.b64encode(_ED25519 + public).decode()}"


def sign(checkpoint: Checkpoint, *, seed: bytes) -> str:
    """The checkpoint as a signed note."""
    key = Ed25519PrivateKey.from_private_bytes(seed)
    signature = key.sign(checkpoint.text().encode())
    stamp = base64.b64encode(_key_id(checkpoint.origin, public_key(seed)) + signature).decode()
    return f"{checkpoint.text()}\n— {checkpoint.origin} {stamp}\n"


def open_note(note: str, *, public: bytes) -> Checkpoint:
    """The checkpoint in a signed note whose log's own signature holds. Raises CheckpointInvalid."""
    text, separator, signatures = note.rpartition("\n\n")
    match = _TEXT.fullmatch(text + "\n")
    if not separator or match is None:
        raise CheckpointInvalid("not a checkpoint: origin, size and root, then signatures, are expected")
    name = match["origin"]
    ours = _key_id(name, public)
    for line in signatures.splitlines():
        mark, _, rest = line.partition(" ")
        signer, _, stamp = rest.partition(" ")
        try:
            content = base64.b64decode(stamp, validate=True)
        except binascii.Error as error:
            raise CheckpointInvalid(f"a signature line that is not base64: {line!r}") from error
        if mark != "—" or signer != name or content[:4] != ours:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(content[4:], (text + "\n").encode())
        except InvalidSignature as error:
            raise CheckpointInvalid(f"the signature by {name} does not hold") from error
        return Checkpoint(name, int(match["size"]), base64.b64decode(match["root"]))
    raise CheckpointInvalid(f"no signature by the key of {name}")


def _key_id(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]
