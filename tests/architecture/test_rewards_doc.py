"""docs/rewards.md shows documents that work."""

import re
from pathlib import Path

import yaml

from learning.judges.definition import JudgeDefinition
from learning.rewards.spec import RewardSpec

TEXT = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
SPEC, JUDGE = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


def test_the_spec_and_the_judge_that_are_shown_are_accepted() -> None:
    assert RewardSpec.from_yaml(SPEC).name == "desk"
    assert JudgeDefinition.parse(yaml.safe_load(JUDGE)).name == "tone"
