"""RFC 6962 Merkle tree hashing: leaf and node hashes, and the root of leaves that come one by one. Nothing is stored.

Used for dataset snapshots; the ledger's incremental tree in `audit` must agree with it (a test holds that)."""

import hashlib
from collections.abc import Iterable


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 || data), RFC 6962 section 2.1."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """A tree that grows leaf by leaf and keeps only the roots of its full subtrees, one for each bit of its size."""

    def __init__(self) -> None:
        self.size = 0
        self._full: list[bytes] = []
        """Largest first."""

    def add(self, leaf: bytes) -> None:
        """Add a leaf hash."""
        size, self.size = self.size, self.size + 1
        while size & 1:
            leaf = node_hash(self._full.pop(), leaf)
            size >>= 1
        self._full.append(leaf)

    def root(self) -> bytes:
        """The tree head so far; the empty tree's is SHA-256 of nothing."""
        if not self._full:
            return hashlib.sha256(b"").digest()
        head = self._full[-1]
        for left in reversed(self._full[:-1]):
            head = node_hash(left, head)
        return head


def root(leaves: Iterable[bytes]) -> bytes:
    """The tree head over leaf hashes."""
    tree = Tree()
    for leaf in leaves:
        tree.add(leaf)
    return tree.root()
