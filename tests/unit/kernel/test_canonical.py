"""The fast writer and RFC 8785's own agree, and so do the growing tree and the ledger's."""

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from kernel import canonical, merkle

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.floats(1e-8, 1e-3)
    | st.floats(1e14, 1e22)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)


@given(DOCUMENTS)
def test_the_bytes_are_those_of_the_rfc(document):
    assert canonical.dumps(document) == rfc8785.dumps(document)


@pytest.mark.parametrize("document", ["\ud800", 2**53, -(2**64), float("nan"), {"\udfff": 1}, {1: 2}])
def test_what_has_no_text_is_refused(document):
    with pytest.raises(canonical.Unsayable):
        canonical.dumps([document])


def test_nesting_without_end_is_refused():
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(canonical.Unsayable):
        canonical.dumps(nested)


@given(st.lists(st.binary(), max_size=70))
def test_a_growing_tree_has_the_root_that_the_rfc_defines(items):
    leaves = [merkle.leaf_hash(item) for item in items]

    def head(leaves: list[bytes]) -> bytes:
        if len(leaves) == 1:
            return leaves[0]
        split = 1 << (len(leaves) - 1).bit_length() - 1
        return merkle.node_hash(head(leaves[:split]), head(leaves[split:]))

    tree = merkle.Tree()
    for count, leaf in enumerate(leaves, start=1):
        tree.add(leaf)
        assert tree.root() == head(leaves[:count])
