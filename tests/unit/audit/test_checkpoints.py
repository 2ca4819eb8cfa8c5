"""Checkpoints in the formats that other people's tools read."""

import base64

import pytest

from audit import checkpoints
from audit.checkpoints import Checkpoint, CheckpointInvalid

SEED = bytes(range(32))
PUBLIC = checkpoints.public_key(SEED)
POINT = Checkpoint("ratchet/acme", 7, bytes(32))


def test_the_text_is_c2sp_byte_for_byte() -> None:
    note = checkpoints.sign(POINT, seed=SEED)
    lines = note.split("\n")
    assert lines[:4] == ["ratchet/acme", "7", base64.b64encode(bytes(32)).decode(), ""]
    assert lines[4].startswith("— ratchet/acme ")
    assert lines[5:] == [""]
    assert len(base64.b64decode(lines[4].split(" ")[2])) == 4 + 64


def test_go_sumdb_example_key_id() -> None:
    # The note package's documentation: "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW".
    public = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")[1:]
    key = checkpoints.verifier_key("PeterNeumann", public)
    assert key == "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"


def test_what_was_signed_opens() -> None:
    assert checkpoints.open_note(checkpoints.sign(POINT, seed=SEED), public=PUBLIC) == POINT


def test_a_witness_line_beside_ours_is_passed_over() -> None:
    note = checkpoints.sign(POINT, seed=SEED)
    note += f"— witness.example {base64.b64encode(b'w' * 68).decode()}\n"
    assert checkpoints.open_note(note, public=PUBLIC) == POINT


@pytest.mark.parametrize(
    "change",
    [
        lambda note: note.replace("\n7\n", "\n8\n"),
        lambda note: note.replace("ratchet/acme", "ratchet/evil"),
        lambda note: note.replace("\n7\n", "\n07\n"),
        lambda note: note[:-10] + "AAAA" + note[-6:],
        lambda note: note.split("\n\n")[0] + "\n\n",
        lambda note: note.replace("— ", "-- "),
        lambda note: note[:-3] + "\n",
        lambda note: "",
    ],
)
def test_a_changed_note_does_not_open(change: object) -> None:
    note = checkpoints.sign(POINT, seed=SEED)
    changed = change(note)  # type: ignore[operator]
    assert changed != note
    with pytest.raises(CheckpointInvalid):
        checkpoints.open_note(changed, public=PUBLIC)


def test_another_key_is_not_ours() -> None:
    note = checkpoints.sign(POINT, seed=bytes(32))
    with pytest.raises(CheckpointInvalid, match="no signature"):
        checkpoints.open_note(note, public=PUBLIC)
