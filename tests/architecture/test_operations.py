"""The operator's page, held against the code: every setting is in its table, with the default that counts."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from config import environment

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (ROOT / "docs/operations.md").read_text().partition("## Settings")[2].partition("\n## ")[0]
ROWS = dict(re.findall(r"^\| `([A-Z_]+)` \| ([^|]+) \|", SETTINGS, re.MULTILINE))


class Asked(Mapping[str, str]):
    """No variables at all, and a note of which were asked for."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def test_every_variable_that_is_read_is_documented() -> None:
    asked = Asked()
    environment.read(asked)
    assert set(ROWS) == asked.names


@pytest.mark.parametrize("name", ROWS)
def test_a_documented_default_is_the_one_that_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting a variable to its default changes nothing; a default in words stands for an absent variable."""
    monkeypatch.chdir(ROOT)
    literal = re.fullmatch(r"`(.+)`", ROWS[name])
    assert environment.read({name: literal[1] if literal else ""}) == environment.read({})
