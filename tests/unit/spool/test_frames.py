"""Reading frames of a file that is being written to at the same moment."""

import io
from pathlib import Path

import pytest

from telemetry import frames

SEED = frames.seed("boot")


class Arriving(io.FileIO):
    """A file whose `rest` is written before the reader asks for its size for the `looks`th time."""

    rest = b""
    looks = 1

    def fileno(self) -> int:
        self.looks -= 1
        if self.looks == 0:
            with Path(str(self.name)).open("ab") as file:
                file.write(self.rest)
        return super().fileno()


WHOLE = [frames.pack(1, number, b'{"a":1}', b"body" * 3000, seed=SEED) for number in (0, 1)]


@pytest.mark.parametrize("looks", [1, 2, 3, 4])
@pytest.mark.parametrize("cut", [len(WHOLE[0]) // 2, len(WHOLE[0]) - 1])
def test_a_frame_whose_rest_comes_while_it_is_read_is_not_damaged(
    tmp_path: Path, cut: int, looks: int
) -> None:
    path = tmp_path / "growing.seg"
    path.write_bytes(WHOLE[0][:cut])
    with Arriving(path) as file:
        file.rest, file.looks = WHOLE[0][cut:] + WHOLE[1], looks
        found = list(frames.read(file, 0, seed=SEED, is_closed=False))
        found += list(frames.read(file, found[-1].end_offset if found else 0, seed=SEED, is_closed=False))
    assert [(frame.sequence, frame.is_after_damage) for frame in found] == [(0, False), (1, False)]
