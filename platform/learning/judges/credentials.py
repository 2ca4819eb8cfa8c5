"""The key of a judge's model server at rest: encrypted, and readable only for the project and origin it was given for.

The origin is read by the library that makes the request, so that no odd URL means one place here and another there."""

import os
from uuid import UUID

import httpx
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_NONCE_BYTES = 12


class Unreadable(ValueError):
    """Sealed under another keyring, for another project or another origin, or altered."""


def seal(credential: str, *, key: bytes, project_id: UUID, base_url: str) -> bytes:
    """Encrypt a credential; `key` is the keyring's credential key."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + _cipher(key).encrypt(nonce, credential.encode(), _bound_to(project_id, base_url))


def unseal(sealed: bytes, *, key: bytes, project_id: UUID, base_url: str) -> str:
    """The credential, if it was sealed for this project and the URL's origin. Raises Unreadable."""
    nonce, text = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        return _cipher(key).decrypt(nonce, text, _bound_to(project_id, base_url)).decode()
    except (InvalidTag, ValueError):
        raise Unreadable("the judge's credential is not readable for this project and origin") from None


def _cipher(key: bytes) -> AESGCM:
    return AESGCM(HKDF(SHA256(), length=32, salt=None, info=b"ratchet judge credential v1").derive(key))


def _bound_to(project_id: UUID, base_url: str) -> bytes:
    url = httpx.URL(base_url)
    return f"{project_id} {url.scheme}://{url.host}:{url.port}".encode()
