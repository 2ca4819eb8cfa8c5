"""What is added to chains can be read back, costs what is new in it, and does not depend on what is remembered."""

import json
import random
from datetime import date
from hashlib import sha256
from uuid import UUID, uuid4

import pytest

from telemetry.chains import MAX_DEPTH, Chains, Link, Undecodable, payload_of, piece_of, split

PROJECT, PERIOD = uuid4(), date(2026, 11, 1)


class Store:
    """What the tables would hold."""

    def __init__(self) -> None:
        self.links: dict[UUID, Link] = {}
        self.pieces: dict[bytes, bytes] = {}

    def add(
        self, chains: Chains, request: bytes, response: bytes = b"{}", kind: str = "chat", **scope: object
    ) -> UUID:
        call_id = uuid4()
        values: dict[str, object] = {"project_id": PROJECT, "period": PERIOD} | scope
        link = chains.add(call_id=call_id, kind=kind, request=request, response=response, **values)  # type: ignore[arg-type]
        self.links[call_id] = link
        self.pieces |= {digest: piece_of(data) for digest, data in link.new_pieces.items()}
        return call_id

    def payload(self, call_id: UUID) -> bytes:
        link = self.links[call_id]
        return payload_of(link.data, self.payload(link.base_id) if link.base_id else None)

    def read(self, call_id: UUID) -> tuple[bytes, bytes]:
        skeleton, response = split(self.payload(call_id))
        request = b"".join(skeleton.parts(self.pieces))
        assert sha256(request).digest() == self.links[call_id].request_sha256
        return request, response

    def depth(self, call_id: UUID) -> int:
        base = self.links[call_id].base_id
        return 0 if base is None else 1 + self.depth(base)


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.randbytes(3).hex() for _ in range(count))


def conversation(turns: int, *, clock: bool = False, seed: int = 1) -> list[tuple[bytes, bytes]]:
    """Requests and answers of an agent; with `clock` its system message changes every turn."""
    rng = random.Random(seed)
    history: list[dict[str, str]] = [{"role": "user", "content": words(rng, 30)}]
    calls = []
    for turn in range(turns):
        system = {"role": "system", "content": f"Be kind. {f'It is {turn} o clock.' if clock else ''}"}
        request = {"model": "gpt-4o", "messages": [system, *history], "stream": False}
        answer = {"role": "assistant", "content": words(rng, 20)}
        calls.append((json.dumps(request).encode(), json.dumps({"choices": [{"message": answer}]}).encode()))
        history += [answer, {"role": "user", "content": words(rng, 30)}]
    return calls


@pytest.mark.parametrize("clock", [False, True])
def test_a_run_is_stored_once_however_often_it_is_resent(clock: bool) -> None:
    store, chains, calls = Store(), Chains(), conversation(60, clock=clock)
    ids = [store.add(chains, *call) for call in calls]
    assert [store.read(call_id) for call_id in ids] == calls
    sizes = [len(store.links[call_id].data) for call_id in ids]
    assert sum(sizes) < 1.5 * len(calls[-1][0])  # random words do not compress by more
    assert sizes[-1] < 1.5 * sizes[2]  # a turn costs the same however long the history is


def test_runs_side_by_side_keep_to_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    store, chains = Store(), Chains()
    runs = [conversation(10, seed=seed) for seed in range(5)]
    ids = [[store.add(chains, *runs[run][turn]) for run in range(5)] for turn in range(10)]
    for turn in range(1, 10):
        assert [store.links[call_id].base_id for call_id in ids[turn]] == ids[turn - 1]


def test_calls_that_continue_nothing_rest_on_the_first_of_their_kind() -> None:
    store, chains = Store(), Chains()
    singles = [conversation(1, seed=seed)[0] for seed in range(50)]
    ids = [store.add(chains, *call) for call in singles]
    assert {store.links[call_id].base_id for call_id in ids[1:]} == {ids[0]}
    other = store.add(chains, b'{"input": "a"}', kind="embeddings")
    assert store.links[other].base_id is None


def test_a_chain_has_an_end() -> None:
    store, chains = Store(), Chains()
    calls = conversation(3 * MAX_DEPTH)
    ids = [store.add(chains, *call) for call in calls]
    assert max(map(store.depth, ids)) <= MAX_DEPTH
    assert store.read(ids[-1]) == calls[-1]


def test_nothing_is_shared_across_projects_and_periods() -> None:
    store, chains = Store(), Chains()
    long = json.dumps({"messages": [{"role": "user", "content": "x" * 5000}]}).encode()
    ids = [
        store.add(chains, long),
        store.add(chains, long, project_id=uuid4()),
        store.add(chains, long, period=date(2026, 12, 1)),
    ]
    assert [store.links[call_id].base_id for call_id in ids] == [None, None, None]
    assert [len(store.links[call_id].new_pieces) for call_id in ids] == [1, 1, 1]
    again = store.add(chains, long)
    assert store.links[again].new_pieces == {}


def test_a_call_that_is_stored_twice_serves_as_a_base_in_either_form() -> None:
    """After a restart the same call is compressed against something else, and later turns rest on either."""
    store, calls = Store(), conversation(3)
    chains = Chains()
    first = store.add(chains, *calls[0])
    second = store.add(chains, *calls[1])
    rested_on_first = store.links[second]
    restarted = Chains()
    store.links[second] = restarted.add(
        project_id=PROJECT,
        period=PERIOD,
        call_id=second,
        kind="chat",
        request=calls[1][0],
        response=calls[1][1],
    )
    third = store.add(restarted, *calls[2])
    assert (rested_on_first.base_id, store.links[second].base_id) == (first, None)
    store.links[second] = rested_on_first
    assert store.read(third) == calls[2]


def test_damage_is_noticed() -> None:
    store = Store()
    link = store.links[store.add(Chains(), b'{"model": "m"}')]
    with pytest.raises(Undecodable):
        payload_of(link.data[:-1] + bytes([link.data[-1] ^ 1]), None)
    with pytest.raises(Undecodable):
        payload_of(b"", None)
