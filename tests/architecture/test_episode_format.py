"""docs/episode-format.md names every member of an episode and of a step."""

import re
from pathlib import Path

from learning.episodes.document import EpisodeDocument, StepPart

TEXT = (Path(__file__).resolve().parents[2] / "docs/episode-format.md").read_text()
EPISODE, _, STEP = TEXT.partition("## A step")


def members(text: str) -> set[str]:
    rows = re.findall(r"^\| ([a-z_, ]+) \|", text, re.MULTILINE)
    return {name for row in rows for name in row.split(", ")} - {"member"}


def test_every_member_is_documented() -> None:
    assert members(EPISODE) == set(EpisodeDocument.model_fields)
    assert members(STEP) == set(StepPart.model_fields)
