"""Declaring what signals mean: what may change, what is refused, what the ledger and the gateways hear."""

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from audit import selectors as ledger
from audit.actions import Actor
from telemetry import declarations
from telemetry.declarations import InvalidMetric, InvalidSetting
from telemetry.metrics import ANYTHING, Better, Kind, Level, Metric
from telemetry.models import DeclaredMetric, SignalSettings

MAYA = Actor.user(id=1, name="maya", role="admin")
STARS = {"name": "stars", "kind": Kind.NUMBER, "minimum": 1.0, "maximum": 5.0, "better": Better.HIGHER}


@pytest.fixture
def declare(tenant, now):
    def work(**fields: Any) -> DeclaredMetric:
        metric = Metric(**{**STARS, **fields})
        return declarations.declare(project=tenant.project, metric=metric, actor=MAYA, now=now, reason="why")

    return work


def test_window_and_description_may_change_and_nothing_else(declare, tenant):
    row = declare()
    assert declare(window_s=60, description="given by users") == row
    for field, value in [
        ("kind", Kind.BOOLEAN),
        ("level", Level.STEP),
        ("better", Better.LOWER),
        ("maximum", 10.0),
        ("minimum", None),
    ]:
        changed = {"minimum": None, "maximum": None} if field == "kind" else {}
        with pytest.raises(InvalidMetric, match=rf"^{field}: .*declare another"):
            declare(**{**changed, field: value})
    (metric,) = declarations.declared(tenant.project.id)
    assert (metric.window_s, metric.description, metric.maximum) == (60, "given by users", 5.0)
    events = ledger.events_of(type="metric", id=row.pk)
    assert [event.action for event in events] == ["metric.declared"] * 2
    assert events[1].reason == "why"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": ""}, "^name: "),
        ({"name": "a\0b"}, "^name: "),
        ({"name": "x" * 101}, "^name: "),
        ({"name": "task"}, "^name: `task` is reserved"),
        ({"name": "closed"}, "^name: `closed` is reserved"),
        ({"window_s": -1}, "^window_s: "),
        ({"window_s": 10**9}, "^window_s: "),
        ({"minimum": 5.0}, "^minimum: "),
        ({"minimum": float("nan")}, "^minimum: "),
        ({"maximum": float("inf")}, "^minimum: "),
        ({"kind": Kind.TEXT}, "^minimum: only numbers"),
        ({"labels": ("a",)}, "^labels: "),
        ({"kind": Kind.LABEL, "minimum": None, "maximum": None}, "^labels: "),
        ({"kind": Kind.LABEL, "minimum": None, "maximum": None, "labels": ("a", "a")}, "^labels: "),
        ({"kind": Kind.LABEL, "minimum": None, "maximum": None, "labels": ("a", "")}, "^labels: "),
        ({"description": "x" * 501}, "^description: "),
    ],
)
def test_what_cannot_be_declared(declare, fields, words):
    with pytest.raises(InvalidMetric, match=words):
        declare(**fields)
    assert not DeclaredMetric.objects.exists()


def test_rules_are_of_one_project(declare, tenant, stranger, now, django_assert_num_queries):
    declare()
    declarations.set_signal_settings(project=stranger.project, is_strict=True, actor=MAYA, now=now)
    with django_assert_num_queries(2):
        rules = declarations.rules_of()
    assert {project_id: (set(r.metrics), r.is_strict) for project_id, r in rules.items()} == {
        tenant.project.id: ({"stars"}, False),
        stranger.project.id: (set(), True),
    }
    assert declarations.rules_of([tenant.project.id]).keys() == {tenant.project.id}
    DeclaredMetric.objects.all().delete()
    assert declarations.rules_of([tenant.project.id]) == {tenant.project.id: ANYTHING}


def test_settings(tenant, now):
    with pytest.raises(InvalidSetting, match=r"^review_share: "):
        declarations.set_signal_settings(project=tenant.project, review_share=1.5, actor=MAYA, now=now)
    declarations.set_signal_settings(project=tenant.project, review_share=0.02, actor=MAYA, now=now)
    declarations.set_signal_settings(project=tenant.project, is_strict=True, actor=MAYA, now=now)
    row = SignalSettings.objects.get()
    assert (row.review_share, row.is_strict, len(bytes(row.review_salt))) == (0.02, True, 32)
    events = ledger.events_of(type="signal_settings", id=tenant.project.pk)
    assert [event.action for event in events] == ["signal_settings.set"] * 2


def run(*arguments: str) -> Any:
    out = StringIO()
    call_command(*arguments, stdout=out)
    return json.loads(out.getvalue())


def test_from_the_command_line(tenant):
    made = run("set_metric", "mood", "label", "--labels", "good, bad", "--window", "60", "--better", "higher")
    assert (made["labels"], made["window_s"], made["better"]) == (["good", "bad"], 60, "higher")
    run("set_metric", "stars", "number", "--min", "1", "--max", "5")
    with pytest.raises(CommandError, match=r"^KIND: `mood` was declared with"):
        run("set_metric", "mood", "text")
    with pytest.raises(CommandError, match=r"^--min: it must be below"):
        run("set_metric", "minutes", "number", "--min", "5", "--max", "1")
    assert run("set_signals", "--strict", "--review-share", "0.02")["is_strict"] is True
    assert run("set_signals")["review_share"] == 0.02
    with pytest.raises(CommandError, match=r"^--review-share: it must be from 0 to 1"):
        run("set_signals", "--review-share", "2")
