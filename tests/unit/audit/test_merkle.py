"""The growing tree agrees with the tree of a whole list, and proofs hold for the right leaf only."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from audit import merkle
from kernel.merkle import leaf_hash, root

LEAVES = [leaf_hash(str(i).encode()) for i in range(70)]


@given(st.lists(st.integers(0, 20), max_size=8))
def test_any_split_into_batches_gives_the_root_of_the_list(batches: list[int]) -> None:
    leaves = [leaf_hash(bytes([i % 256])) for i in range(sum(batches))]
    frontier, done = merkle.EMPTY, 0
    for batch in batches:
        frontier = frontier.extend(leaves[done : done + batch])
        frontier = merkle.Frontier.from_bytes(frontier.size, frontier.to_bytes())
        done += batch
        assert frontier.root() == root(leaves[:done])


def test_known_root() -> None:
    # RFC 9162: the root of two leaves d0, d1 is SHA-256(0x01 || leaf(d0) || leaf(d1)).
    a, b = hashlib.sha256(b"\x00a").digest(), hashlib.sha256(b"\x00b").digest()
    frontier = merkle.EMPTY.extend([leaf_hash(b"a"), leaf_hash(b"b")])
    assert frontier.root() == hashlib.sha256(b"\x01" + a + b).digest()


def test_every_leaf_of_every_small_tree_can_be_proved_and_no_other() -> None:
    for size in range(1, 34):
        leaves = LEAVES[:size]
        head = root(leaves)
        for index in range(size):
            proof = merkle.inclusion_proof(leaves, index)
            assert merkle.verify_inclusion(leaves[index], index=index, size=size, proof=proof, root=head)
            assert not merkle.verify_inclusion(LEAVES[-1], index=index, size=size, proof=proof, root=head)
            assert not merkle.verify_inclusion(
                leaves[index], index=index, size=size, proof=[*proof, LEAVES[-1]], root=head
            )
            if proof:
                assert not merkle.verify_inclusion(
                    leaves[index], index=index, size=size, proof=proof[:-1], root=head
                )
                other = (index + 1) % size
                assert not merkle.verify_inclusion(
                    leaves[index], index=other, size=size, proof=proof, root=head
                )


def test_a_proof_of_a_million_leaves_is_twenty_hashes() -> None:
    # The path's length follows from the size alone; 2**20 leaves need 20.
    leaves = [LEAVES[0]] * 2**12
    assert len(merkle.inclusion_proof(leaves, 5)) == 12
