"""Anybody does anything in any order: still nobody answers without an approval, and nothing gets stuck."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from audit import selectors as ledger
from audit.actions import Action
from kernel.states import IllegalTransition, StateChanged
from learning.models import Evaluation
from release import promotion, rollout, selectors
from release.models import PROMOTION_OPEN, Deployment, ModelVersion, Promotion, PromotionState

# Weighted towards those who may, so that most walks get past the first door.
PROPOSERS = st.sampled_from(["maya", "maya", "maya", "omar", "viewer", "stranger"])
DECIDERS = st.sampled_from(["omar", "omar", "olga", "olga", "maya", "stranger"])
REASONS = st.sampled_from(["because", "because", "because", " "])
ONE_IN_FOUR = st.sampled_from([True, False, False, False])


def there_is(*states: str) -> Callable[[object], bool]:
    return lambda _: Promotion.objects.filter(state__in=states).exists()


def machine(company: Any, node: Any, wire: Any) -> Callable[[], RuleBasedStateMachine]:
    now = company.deployment.updated_at
    numbers = itertools.count(3)  # the files of a version outlive the rollback of its row

    class Promotions(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.transaction = transaction.atomic()
            self.transaction.__enter__()

            self.generation, self.champion = 1, company.v1.pk

        @initialize(
            depth=st.sampled_from(["nothing", "approved", "canary", "canary", "champion", "champion"])
        )
        def begin(self, depth: str) -> None:
            """Walks begin at different depths: random steps alone seldom get far."""
            if depth == "nothing":
                return
            row = company.approve(company.propose())
            if depth != "approved":
                assert rollout.start_canary(promotion_id=row.pk, now=now)
            if depth == "champion":
                company.calls(50, by=company.v2)
                rollout.judge_canary(promotion_id=row.pk, now=now)

        def teardown(self) -> None:
            self.way_out()
            transaction.set_rollback(True)
            self.transaction.__exit__(None, None, None)

        def attempt(self, step: Callable[[], object]) -> None:
            try:
                with transaction.atomic():
                    step()
            except (IllegalTransition, StateChanged):
                pass

        @rule(passes=st.booleans())
        def train(self, passes: bool) -> None:

            version, evaluation = company.version(next(numbers))
            Evaluation.objects.filter(pk=evaluation.pk).update(verdict="pass" if passes else "fail")
            wire.names.append(version.served_name)
            type(node).objects.update(loaded=wire.names)

        @rule(who=PROPOSERS, reason=REASONS, pick=st.integers(0, 9))
        def propose(self, who: str, reason: str, pick: int) -> None:
            evaluations = list(Evaluation.objects.order_by("created_at", "pk"))
            evaluation = evaluations[pick % len(evaluations)]
            self.attempt(
                lambda: company.propose(
                    evaluation=evaluation, requested_by=getattr(company, who), reason=reason
                )
            )

        @precondition(there_is(*PromotionState))
        @rule(who=DECIDERS, reason=REASONS, no=ONE_IN_FOUR)
        def decide(self, who: str, reason: str, no: bool) -> None:
            row = Promotion.objects.order_by("-created_at", "-pk").first()
            act = promotion.reject if no else promotion.approve
            self.attempt(lambda: act(promotion=row, approver=getattr(company, who), reason=reason, now=now))

        @precondition(there_is("proposed", "approved"))
        @rule(really=ONE_IN_FOUR)
        def change_evidence(self, really: bool) -> None:
            row = Promotion.objects.filter(state__in=["proposed", "approved"]).get()
            if really:
                Evaluation.objects.filter(pk=row.evaluation_id).update(evidence={"difference": "0.9"})

        @precondition(there_is("approved", "rejected"))
        @rule()
        def start(self) -> None:
            for row in Promotion.objects.all():
                self.attempt(lambda row=row: rollout.start_canary(promotion_id=row.pk, now=now))

        @precondition(there_is("canary"))
        @rule(bad=ONE_IN_FOUR)
        def judge(self, bad: bool) -> None:
            for row in Promotion.objects.filter(state="canary").select_related("candidate"):
                company.calls(50, by=row.candidate, outcome="unreachable" if bad else "complete")
            for row in Promotion.objects.all():
                self.attempt(lambda row=row: rollout.judge_canary(promotion_id=row.pk, now=now))

        @precondition(there_is("canary", "champion"))
        @rule(who=DECIDERS, pick=st.none() | st.integers(0, 9))
        def roll_back(self, who: str, pick: int | None) -> None:
            versions = list(ModelVersion.objects.order_by("created_at", "pk"))
            to = None if pick is None else versions[pick % len(versions)]
            self.attempt(
                lambda: rollout.roll_back(
                    deployment=company.deployment,
                    actor_user=getattr(company, who),
                    reason="x",
                    now=now,
                    to=to,
                )
            )

        @invariant()
        def whoever_answers_was_approved_by_somebody_else(self) -> None:
            for route in selectors.routes():
                for target in (route.champion, route.canary):
                    if target is None or target.model_version_id == str(company.v1.pk):
                        continue
                    approved = Promotion.objects.filter(
                        candidate_id=target.model_version_id, state__in=["canary", "champion"]
                    ).get()
                    assert approved.decided_by_id not in {None, approved.requested_by_id}
                    assert approved.decided_by in {company.omar, company.olga}
                    assert approved.evaluation.verdict == "pass"
                    events = ledger.events_of(type="promotion", id=approved.pk)
                    assert Action.PROMOTION_APPROVED in {event.action for event in events}

        @invariant()
        def every_change_of_who_answers_is_a_generation_and_an_event(self) -> None:
            row = Deployment.objects.get()
            assert row.generation >= self.generation
            if (row.champion_id, row.generation) != (self.champion, self.generation):
                assert row.generation > self.generation
            self.generation, self.champion = row.generation, row.champion_id
            events = ledger.events_of(type="deployment", id=row.pk)
            assert len(events) == row.generation

        @invariant()
        def one_promotion_is_open_and_the_canary_is_its(self) -> None:
            opened = list(Promotion.objects.filter(state__in=PROMOTION_OPEN))
            assert len(opened) <= 1
            canary = Deployment.objects.get().canary_id
            assert [row.candidate_id for row in opened if row.state == "canary"] == (
                [canary] if canary else []
            )

        def way_out(self) -> None:
            """Whatever is open, people with the right role can always end it."""
            for row in Promotion.objects.filter(state__in=PROMOTION_OPEN):
                if row.state == PromotionState.CANARY:
                    rollout.roll_back(
                        deployment=company.deployment, actor_user=company.omar, reason="stop", now=now
                    )
                else:
                    approver = company.olga if row.requested_by == company.omar else company.omar
                    promotion.reject(promotion=row, approver=approver, reason="stop", now=now)
            assert not Promotion.objects.filter(state__in=PROMOTION_OPEN).exists()

    return Promotions


@pytest.mark.django_db
def test_any_order_of_steps_keeps_the_promises(company: Any, node: Any, wire: Any) -> None:
    run_state_machine_as_test(
        machine(company, node, wire),
        settings=settings(
            max_examples=20,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
