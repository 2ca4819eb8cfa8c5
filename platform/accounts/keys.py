"""API keys as text: minting, the checksum that catches typing errors and leaks, the digest that is stored.

Pure. A key is `rk_<40 base62 characters>_<6 characters of CRC-32>`: 238 random bits, so a plain HMAC is
enough and a slow password hash would buy nothing. The fixed form lets secret scanners find a leaked key
without a look-up."""

import hashlib
import hmac
import re
import secrets
import zlib

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FORM = re.compile(r"rk_[0-9A-Za-z]{40}_[0-9A-Za-z]{6}")


def mint() -> str:
    """A fresh random key."""
    secret = "rk_" + "".join(secrets.choice(_DIGITS) for _ in range(40))
    return f"{secret}_{_checksum(secret)}"


def well_formed(key: str) -> bool:
    """Whether `key` has the form of a key and its checksum; says nothing about whether it exists."""
    return _FORM.fullmatch(key) is not None and key[-6:] == _checksum(key[:-7])


def digest(key: str, pepper: bytes) -> bytes:
    """HMAC-SHA-256 of the key under the installation's pepper: 32 bytes, what the database holds."""
    return hmac.digest(pepper, key.encode(), hashlib.sha256)


def prefix(key: str) -> str:
    """Enough for a person to tell their keys apart: `rk_` and seven characters."""
    return key[:10]


def _checksum(text: str) -> str:
    number = zlib.crc32(text.encode())
    characters = []
    for _ in range(6):
        number, digit = divmod(number, 62)
        characters.append(_DIGITS[digit])
    return "".join(reversed(characters))
