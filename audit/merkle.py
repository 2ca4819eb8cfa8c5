"""The ledger's tree, RFC 9162 section 2.1: grown leaf by leaf, with proofs that one leaf is in it. Pure.

`kernel.merkle` hashes a list that is all there; this keeps only the roots of the full subtrees (at most 64
hashes) between one batch of leaves and the next. A test holds that both give the same root."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kernel.merkle import node_hash
from kernel.merkle import root as root_of_list


@dataclass(frozen=True, slots=True)
class Frontier:
    """A tree of `size` leaves, as the roots of its full subtrees, largest first: one for each bit set in
    `size`."""

    size: int
    hashes: tuple[bytes, ...]

    @classmethod
    def from_bytes(cls, size: int, packed: bytes) -> "Frontier":
        """Raises ValueError when `packed` does not hold as many hashes as `size` has bits set."""
        if len(packed) != 32 * size.bit_count():
            raise ValueError(
                f"a tree of {size} leaves has {size.bit_count()} hashes, not {len(packed) / 32:g}"
            )
        return cls(size, tuple(packed[i : i + 32] for i in range(0, len(packed), 32)))

    def to_bytes(self) -> bytes:
        return b"".join(self.hashes)

    def extend(self, leaves: Iterable[bytes]) -> "Frontier":
        """The tree with these leaf hashes added at its right end."""
        size, hashes = self.size, list(self.hashes)
        for leaf in leaves:
            # As in binary addition: each full subtree that ends here is a bit that carries.
            node, carry = leaf, size
            while carry & 1:
                node = node_hash(hashes.pop(), node)
                carry >>= 1
            hashes.append(node)
            size += 1
        return Frontier(size, tuple(hashes))

    def root(self) -> bytes:
        """The tree head (32 bytes)."""
        if not self.hashes:
            return root_of_list([])
        node = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            node = node_hash(left, node)
        return node


EMPTY = Frontier(0, ())


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes beside the path from leaf `index` to the root, nearest first (RFC 9162 section 2.1.3.1)."""
    if not 0 <= index < len(leaves):
        raise ValueError(f"no leaf {index} in a tree of {len(leaves)}")
    if len(leaves) == 1:
        return []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if index < split:
        return [*inclusion_proof(leaves[:split], index), root_of_list(leaves[split:])]
    return [*inclusion_proof(leaves[split:], index - split), root_of_list(leaves[:split])]


def verify_inclusion(leaf: bytes, *, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `proof` leads from `leaf` at `index` to `root` of a tree of `size` (RFC 9162 section
    2.1.3.2)."""
    if not 0 <= index < size:
        return False
    node, last = leaf, size - 1
    for sibling in proof:
        if last == 0:
            return False  # longer than the path
        if index & 1 or index == last:
            node = node_hash(sibling, node)
            while index and not index & 1:
                index, last = index >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        index, last = index >> 1, last >> 1
    return last == 0 and node == root
