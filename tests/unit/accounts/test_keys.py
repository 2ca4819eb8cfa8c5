"""The text form of API keys."""

from accounts import keys


def test_minted_keys_are_well_formed_and_differ() -> None:
    minted = {keys.mint() for _ in range(200)}
    assert len(minted) == 200
    assert all(keys.well_formed(key) for key in minted)


def test_one_wrong_character_anywhere_is_noticed() -> None:
    key = keys.mint()
    for i in range(len(key)):
        wrong = "a" if key[i] != "a" else "b"
        assert not keys.well_formed(key[:i] + wrong + key[i + 1 :])
    assert not keys.well_formed(key + "\n")
    assert not keys.well_formed("")
    assert not keys.well_formed("sk-something-else")


def test_the_digest_depends_on_the_pepper() -> None:
    key = keys.mint()
    assert keys.digest(key, b"a" * 32) != keys.digest(key, b"b" * 32)
    assert len(keys.digest(key, b"a" * 32)) == 32


def test_the_prefix_is_the_start_and_says_little() -> None:
    key = keys.mint()
    assert key.startswith(keys.prefix(key))
    assert len(keys.prefix(key)) == 10
