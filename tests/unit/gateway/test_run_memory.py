"""The pure part of what gateways tell each other about runs: names, and reading what Redis holds."""

from uuid import uuid4

from gateway.run_memory import first_told, name_of

RUN, ANOTHER = uuid4(), uuid4()
ECHOES = [b"3" * 32, b"2" * 32, b"1" * 32]


def test_a_name_belongs_to_one_key_and_one_answer() -> None:
    key, other = uuid4(), uuid4()
    names = {name_of(key, ECHOES[0]), name_of(other, ECHOES[0]), name_of(key, ECHOES[1])}
    assert len(names) == 3
    assert {len(name) for name in names} == {32}


def test_the_longest_echo_that_is_known_counts() -> None:
    assert first_told(ECHOES, [None, RUN.bytes, ANOTHER.bytes]) == (RUN, ECHOES[1])
    assert first_told(ECHOES, [None, None, None]) is None


def test_what_is_no_run_id_counts_as_nothing() -> None:
    assert first_told(ECHOES, [b"", b"x" * 17, RUN.bytes]) == (RUN, ECHOES[2])
