"""Where a base URL leads. The one reading of it: a credential is bound to the very origin that is connected to."""

from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a base URL leads: one pool of connections."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> "tuple[Origin, bytes]":
        """The origin of a base URL, and the path that it adds in front of every request."""
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(parts.scheme, parts.hostname or "", port), parts.path.rstrip("/").encode()

    @property
    def host_header(self) -> bytes:
        host = f"[{self.host}]" if ":" in self.host else self.host
        is_default = self.port == (443 if self.scheme == "https" else 80)
        return (host if is_default else f"{host}:{self.port}").encode()

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host_header.decode()}"
