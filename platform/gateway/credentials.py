"""Secrets at rest: encrypted; providers' credentials bound to the project and the origin they were stored for, those of
webhooks to the project and the webhook.

The origin (scheme, host, port) goes into the encryption as associated data. A stored credential can therefore be read
only together with a URL of the origin it belongs to: whoever changes the URL, in the product or behind its back, gets
nothing sent elsewhere. Does not know tables."""

import os
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.wire.origin import Origin

NONCE_BYTES = 12
_UPSTREAM, _WEBHOOK = b"ratchet upstream credential v1", b"ratchet webhook secret v1"


class Unreadable(ValueError):
    """The secret was sealed under another keyring, or for another project, origin or webhook, or was altered."""


def origin(base_url: str) -> str:
    """Scheme, host and port that a request to the URL goes to, e.g. `https://api.example.com:443`.

    Read by the function that the relay connects by, so that no odd URL means one place here and another there.
    Raises ValueError for a URL that leads nowhere."""
    found, _ = Origin.of(base_url)
    if found.scheme not in {"http", "https"} or not found.host:
        raise ValueError("the URL names no host, or no scheme that is spoken here")
    return f"{found.scheme}://{found.host}:{found.port}"


def seal(credential: str, *, key: bytes, project_id: UUID, base_url: str) -> bytes:
    """Encrypt a credential for calls of the project to the URL's origin; `key` is the keyring's credential key."""
    return _seal(_cipher(key, _UPSTREAM), credential, _bound_to(project_id, base_url))


def unseal(sealed: bytes, *, key: bytes, project_id: UUID, base_url: str) -> str:
    """The credential, if it was sealed for this project and the URL's origin. Raises Unreadable."""
    try:
        return _unseal(_cipher(key, _UPSTREAM), sealed, _bound_to(project_id, base_url))
    except (InvalidTag, ValueError):
        raise Unreadable("the credential is not readable for this project and origin") from None


def seal_secret(secret: str, *, key: bytes, project_id: UUID, webhook_id: UUID) -> bytes:
    """Encrypt the secret with which a business system signs for this webhook of the project."""
    return _seal(_cipher(key, _WEBHOOK), secret, f"{project_id} {webhook_id}".encode())


def unseal_secret(sealed: bytes, *, key: bytes, project_id: UUID, webhook_id: UUID) -> str:
    """The secret, if it was sealed for this webhook. Raises Unreadable."""
    try:
        return _unseal(_cipher(key, _WEBHOOK), sealed, f"{project_id} {webhook_id}".encode())
    except (InvalidTag, ValueError):
        raise Unreadable("the secret is not readable for this webhook") from None


def _seal(cipher: AESGCM, text: str, bound_to: bytes) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, text.encode(), bound_to)


def _unseal(cipher: AESGCM, sealed: bytes, bound_to: bytes) -> str:
    return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound_to).decode()


def _cipher(key: bytes, purpose: bytes) -> AESGCM:
    return AESGCM(HKDF(SHA256(), length=32, salt=None, info=purpose).derive(key))


def _bound_to(project_id: UUID, base_url: str) -> bytes:
    return f"{project_id} {origin(base_url)}".encode()
