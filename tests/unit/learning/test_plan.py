"""What the planner makes of a snapshot."""

from learning.environments.registry import get_environment
from learning.models import DatasetSnapshot
from learning.training import MIN_TASKS, plan

DESK = get_environment("support_desk")


def snapshot(task_keys: list[str]) -> DatasetSnapshot:
    return DatasetSnapshot(name="week", episode_count=len(task_keys), manifest={"task_keys": task_keys})


def test_enough_tasks_that_the_environment_plays_make_grpo():
    tasks = DESK.task_ids("train", MIN_TASKS)
    made = plan(snapshot([*tasks, *tasks, "heldout-0001", "ticket 7"]), DESK)
    assert (made.algorithm, made.tasks) == ("grpo", tuple(tasks))
    assert f"{MIN_TASKS} of them are training tasks of support_desk" in made.reasons[0]


def test_too_few_make_nothing_and_say_so():
    made = plan(snapshot([*DESK.task_ids("train", MIN_TASKS - 1), *DESK.task_ids("heldout", 50)]), DESK)
    assert made.algorithm is None
    assert any("at least 20 different tasks" in reason for reason in made.reasons)
