"""Promotions: every yes with its no, on one set-up; nobody answers an alias without an approved promotion."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection

from audit import selectors as ledger
from kernel.states import IllegalTransition
from learning.models import Evaluation
from release import promotion, rollout, selectors
from release.canary import Action
from release.models import ModelVersion, Promotion
from release.moves import Refused

Company = Any
NOW: Any = None


@pytest.fixture(autouse=True)
def _now(company: Company) -> None:
    global NOW
    NOW = company.deployment.updated_at


def actions(row: Promotion) -> list[str]:
    return [event.action.value for event in selectors.history(row)]


def states() -> list[tuple[str, str]]:
    """Of every promotion, where it stands and the guard's last sentence."""
    return list(Promotion.objects.values_list("state", "verdict"))


def in_canary(company: Company) -> Promotion:
    row = company.approve(company.propose())
    assert rollout.start_canary(promotion_id=row.pk, now=NOW)
    return Promotion.objects.get(pk=row.pk)


def as_champion(company: Company) -> Promotion:
    row = in_canary(company)
    company.calls(50, by=company.v2)
    company.calls(150, by=company.v1)
    verdict = rollout.judge_canary(promotion_id=row.pk, now=NOW + timedelta(minutes=1))
    assert verdict is not None
    assert verdict.action is Action.PROMOTE
    return Promotion.objects.get(pk=row.pk)


class TestPropose:
    def test_a_passed_gate_can_be_proposed(self, company: Company) -> None:
        row = company.propose()
        assert (row.state, row.previous, row.candidate) == ("proposed", company.v1, company.v2)
        assert actions(row) == ["promotion.proposed"]
        assert company.who() == ("desk-v1", None, 0.0, 1)

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"requested_by": "viewer"}, "may not propose"),
            ({"requested_by": "stranger"}, "may not propose"),
            ({"reason": "  "}, "needs a reason"),
            ({"canary_share": 0.0}, "share"),
            ({"canary_share": 1.1}, "share"),
        ],
    )
    def test_and_otherwise_not(self, company: Company, change: dict[str, Any], sentence: str) -> None:
        if "requested_by" in change:
            change = {"requested_by": getattr(company, change["requested_by"])}
        with pytest.raises(Refused, match=sentence):
            company.propose(**change)
        assert Promotion.objects.count() == 0

    @pytest.mark.parametrize("verdict", ["fail", "not_enough_evidence", ""])
    def test_no_gate_no_proposal(self, company: Company, verdict: str) -> None:
        Evaluation.objects.update(verdict=verdict)
        with pytest.raises(Refused, match="did not pass"):
            company.propose()

    def test_one_open_promotion_for_an_alias(self, company: Company) -> None:
        company.propose()
        with pytest.raises(Refused, match="open promotion"):
            company.propose()

    def test_a_comparison_with_an_old_champion_does_not_count(self, company: Company) -> None:
        _, stale = company.version(3)
        as_champion_without_traffic(company)
        with pytest.raises(Refused, match="not champion"):
            company.propose(evaluation=stale)


def as_champion_without_traffic(company: Company) -> None:
    """v2 becomes champion by the shortest way the table allows; for tests that are about what follows."""
    row = company.approve(company.propose())
    Promotion.objects.filter(pk=row.pk).update(state="champion", champion_at=NOW, finished_at=NOW)
    type(company.deployment).objects.filter(pk=company.deployment.pk).update(champion=company.v2)


class TestOffer:
    def test_a_passed_evaluation_is_proposed_for_whoever_asked_for_the_training(
        self, company: Company
    ) -> None:
        assert promotion.due_offers() == [company.evaluation.pk]
        row = promotion.offer(evaluation_id=company.evaluation.pk, now=NOW)
        assert row is not None
        assert (row.requested_by, row.requested_reason) == (
            company.maya,
            "The gate passed on 300 held-out tasks.",
        )
        assert promotion.offer(evaluation_id=company.evaluation.pk, now=NOW) == row
        assert promotion.due_offers() == []

    @pytest.mark.parametrize("verdict", ["fail", "not_enough_evidence"])
    def test_a_failed_one_is_not(self, company: Company, verdict: str) -> None:
        Evaluation.objects.update(verdict=verdict)
        assert promotion.due_offers() == []
        assert promotion.offer(evaluation_id=company.evaluation.pk, now=NOW) is None
        assert Promotion.objects.count() == 0

    def test_while_another_is_open_nothing_happens(self, company: Company) -> None:
        company.propose()
        _, other = company.version(3)
        assert promotion.offer(evaluation_id=other.pk, now=NOW) is None
        assert Promotion.objects.count() == 1


class TestDecide:
    def test_another_person_with_the_role_approves(self, company: Company) -> None:
        row = company.approve(company.propose())
        assert (row.state, row.decided_by, row.decided_reason) == (
            "approved",
            company.omar,
            "worst cases are fine",
        )
        assert actions(row) == ["promotion.proposed", "promotion.approved"]
        event = selectors.history(row)[-1]
        assert (event.actor.name, event.actor.role) == ("omar", "approver")
        assert event.object.digest == row.evidence_digest
        assert company.who() == ("desk-v1", None, 0.0, 1)

    @pytest.mark.parametrize("decide", [promotion.approve, promotion.reject])
    @pytest.mark.parametrize(
        ("who", "reason", "sentence"),
        [
            ("stranger", "fine", "may not"),
            ("viewer", "fine", "may not"),
            ("maya", "fine", "may not"),
            ("omar", "", "needs a reason"),
            ("omar", " \n", "needs a reason"),
        ],
    )
    def test_nobody_else_decides(
        self, company: Company, decide: Any, who: str, reason: str, sentence: str
    ) -> None:
        row = company.propose()
        with pytest.raises(Refused, match=sentence):
            decide(promotion=row, approver=getattr(company, who), reason=reason, now=NOW)
        assert Promotion.objects.get().state == "proposed"
        assert actions(row) == ["promotion.proposed"]

    def test_an_approver_does_not_decide_on_their_own_request(self, company: Company) -> None:
        row = company.propose(requested_by=company.omar)
        with pytest.raises(Refused, match="somebody else"):
            company.approve(row)
        assert company.approve(row, approver=company.olga).state == "approved"

    def test_a_switched_off_account_does_not_decide(self, company: Company) -> None:
        row = company.propose()
        type(company.omar).objects.filter(pk=company.omar.pk).update(is_active=False)
        with pytest.raises(Refused):
            company.approve(row)

    def test_changed_evidence_voids_the_proposal(self, company: Company) -> None:
        row = company.propose()
        Evaluation.objects.update(evidence={"difference": "0.9"})
        with pytest.raises(Refused, match="evidence changed"):
            company.approve(row)
        assert (
            promotion.reject(promotion=row, approver=company.omar, reason="stale", now=NOW).state
            == "rejected"
        )

    def test_rejected_is_the_end(self, company: Company) -> None:
        row = company.propose()
        promotion.reject(promotion=row, approver=company.omar, reason="too risky", now=NOW)
        with pytest.raises(IllegalTransition):
            company.approve(row)
        assert not rollout.start_canary(promotion_id=row.pk, now=NOW)
        assert actions(row) == ["promotion.proposed", "promotion.rejected"]
        assert company.propose().state == "proposed"  # and asking again is allowed

    def test_an_approval_can_be_taken_back_before_the_canary(self, company: Company) -> None:
        row = company.approve(company.propose())
        promotion.reject(promotion=row, approver=company.olga, reason="wait", now=NOW)
        assert Promotion.objects.get().state == "rejected"


class TestCanary:
    def test_it_starts_once_a_node_answers_with_the_candidate(self, company: Company, node: Any) -> None:
        row = in_canary(company)
        assert company.who() == ("desk-v1", "desk-v2", 0.25, 2)
        assert actions(row)[-1] == "canary.started"
        assert rollout.start_canary(promotion_id=row.pk, now=NOW)  # a second hint changes nothing
        assert company.who() == ("desk-v1", "desk-v2", 0.25, 2)

    def test_not_before_approval(self, company: Company, node: Any) -> None:
        row = company.propose()
        assert not rollout.start_canary(promotion_id=row.pk, now=NOW)
        assert company.who() == ("desk-v1", None, 0.0, 1)

    def test_not_while_it_is_not_loaded_and_it_says_so(self, company: Company, node: Any) -> None:
        row = company.approve(company.propose())
        type(node).objects.update(loaded=["desk-base"])
        assert not rollout.start_canary(promotion_id=row.pk, now=NOW)
        assert "waiting for a policy node to load" in Promotion.objects.get().verdict
        assert company.who() == ("desk-v1", None, 0.0, 1)

    def test_not_while_the_node_fails_to_answer(self, company: Company, node: Any, wire: Any) -> None:
        row = company.approve(company.propose())
        wire.answer_status = 500
        assert not rollout.start_canary(promotion_id=row.pk, now=NOW)
        assert "answers 500" in Promotion.objects.get().verdict
        wire.answer_status = 200
        assert rollout.start_canary(promotion_id=row.pk, now=NOW)
        assert Promotion.objects.get().verdict == ""

    def test_not_on_evidence_that_changed_after_the_approval(self, company: Company, node: Any) -> None:
        row = company.approve(company.propose())
        Evaluation.objects.update(evidence={"difference": "0.9"})
        assert not rollout.start_canary(promotion_id=row.pk, now=NOW)
        assert company.who() == ("desk-v1", None, 0.0, 1)

    def test_enough_good_calls_make_a_champion(self, company: Company, node: Any) -> None:
        row = as_champion(company)
        assert (row.state, row.champion_at is not None) == ("champion", True)
        assert company.who() == ("desk-v2", None, 0.0, 3)
        event = selectors.history(row)[-1]
        assert (event.action.value, event.actor.type, event.actor.id) == (
            "champion.changed",
            "rule",
            "canary-guard",
        )
        assert event.data["canary_calls"] == 50

    def test_too_few_wait(self, company: Company, node: Any) -> None:
        row = in_canary(company)
        company.calls(49, by=company.v2)
        verdict = rollout.judge_canary(promotion_id=row.pk, now=NOW)
        assert verdict is not None
        assert verdict.action is Action.WAIT
        assert Promotion.objects.get().verdict == "49 of 50 canary calls"
        assert company.who()[1] == "desk-v2"

    @pytest.mark.parametrize("outcome", ["upstream_error", "upstream_cut", "unreachable"])
    def test_failing_calls_abort_it(self, company: Company, node: Any, outcome: str) -> None:
        row = in_canary(company)
        company.calls(100, by=company.v2)
        company.calls(12, by=company.v2, outcome=outcome)
        company.calls(100, by=company.v1)
        rollout.judge_canary(promotion_id=row.pk, now=NOW)
        row = Promotion.objects.get()
        assert (row.state, row.champion_at) == ("rolled_back", None)
        assert company.who() == ("desk-v1", None, 0.0, 3)
        assert actions(row)[-1] == "canary.aborted"

    def test_callers_who_hang_up_are_not_failures(self, company: Company, node: Any) -> None:
        row = in_canary(company)
        company.calls(50, by=company.v2)
        company.calls(40, by=company.v2, outcome="client_gone")
        rollout.judge_canary(promotion_id=row.pk, now=NOW)
        assert Promotion.objects.get(pk=row.pk).state == "champion"

    def test_slow_calls_abort_it(self, company: Company, node: Any) -> None:
        row = in_canary(company)
        company.calls(60, by=company.v2, took_ms=9000)
        company.calls(60, by=company.v1, took_ms=200)
        rollout.judge_canary(promotion_id=row.pk, now=NOW)
        assert Promotion.objects.get(pk=row.pk).state == "rolled_back"

    def test_calls_of_other_versions_and_times_are_not_evidence(self, company: Company, node: Any) -> None:
        row = in_canary(company)
        company.calls(60, by=company.v2)
        Promotion.objects.update(canary_started_at=NOW + timedelta(hours=1))
        verdict = rollout.judge_canary(promotion_id=row.pk, now=NOW)
        assert verdict is not None
        assert verdict.sentence == "0 of 50 canary calls"


class TestRollBack:
    def roll_back(self, company: Company, **changes: Any) -> ModelVersion:
        fields = {"deployment": company.deployment, "actor_user": company.maya, "reason": "drill", "now": NOW}
        return rollout.roll_back(**{**fields, **changes})

    def test_back_and_forward_again(self, company: Company, node: Any) -> None:
        row = as_champion(company)
        guard = row.verdict
        assert "50 canary calls" in guard
        assert self.roll_back(company) == company.v1
        assert company.who() == ("desk-v1", None, 0.0, 4)
        assert states() == [("rolled_back", guard)]
        assert self.roll_back(company, to=company.v2) == company.v2
        assert company.who() == ("desk-v2", None, 0.0, 5)
        assert states() == [("champion", guard)]
        events = ledger.events_of(type="deployment", id=company.deployment.pk)
        assert [event.action.value for event in events[-2:]] == ["champion.restored"] * 2
        assert (events[-1].actor.name, events[-1].reason) == ("maya", "drill")
        assert actions(row).count("champion.changed") == 1

    def test_a_running_canary_is_aborted_and_that_is_all(self, company: Company, node: Any) -> None:
        row = in_canary(company)
        rollout.judge_canary(promotion_id=row.pk, now=NOW)
        assert self.roll_back(company) == company.v1
        assert company.who() == ("desk-v1", None, 0.0, 3)
        assert states() == [("rolled_back", "0 of 50 canary calls")]
        assert actions(row)[-1] == "canary.aborted"
        company.calls(60, by=company.v2)
        assert rollout.judge_canary(promotion_id=row.pk, now=NOW) is None

    def test_a_named_target_with_a_running_canary_does_both(
        self, company: Company, node: Any, wire: Any
    ) -> None:
        as_champion(company)
        v3, evaluation = company.version(3)
        row = company.approve(company.propose(evaluation=evaluation))
        wire.names.append(v3.served_name)
        type(node).objects.update(loaded=wire.names)
        assert rollout.start_canary(promotion_id=row.pk, now=NOW)
        assert self.roll_back(company, to=company.v1) == company.v1
        assert company.who()[:2] == ("desk-v1", None)
        assert Promotion.objects.get(pk=row.pk).state == "rolled_back"

    @pytest.mark.parametrize("who", ["viewer", "stranger"])
    def test_who_may_not(self, company: Company, node: Any, who: str) -> None:
        as_champion(company)
        with pytest.raises(Refused, match="may not roll back"):
            self.roll_back(company, actor_user=getattr(company, who))
        assert company.who()[0] == "desk-v2"

    def test_not_without_a_reason(self, company: Company, node: Any) -> None:
        as_champion(company)
        with pytest.raises(Refused, match="reason"):
            self.roll_back(company, reason=" ")

    def test_not_before_the_first_champion(self, company: Company) -> None:
        with pytest.raises(Refused, match="no champion before"):
            self.roll_back(company)

    def test_never_to_a_version_nobody_approved(self, company: Company, node: Any) -> None:
        as_champion(company)
        v3, _ = company.version(3)
        with pytest.raises(Refused, match="never been champion"):
            self.roll_back(company, to=v3)

    def test_never_to_a_version_whose_canary_was_aborted(self, company: Company, node: Any) -> None:
        in_canary(company)
        self.roll_back(company)
        with pytest.raises(Refused, match="never been champion"):
            self.roll_back(company, to=company.v2)

    def test_a_proposal_made_against_another_champion_cannot_be_approved(
        self, company: Company, node: Any
    ) -> None:
        as_champion(company)
        _, evaluation = company.version(3)
        row = company.propose(evaluation=evaluation)
        self.roll_back(company)
        with pytest.raises(Refused, match="not champion"):
            company.approve(row)
        assert (
            promotion.reject(promotion=row, approver=company.omar, reason="stale", now=NOW).state
            == "rejected"
        )


@pytest.mark.django_db(transaction=True)
def test_two_approvers_at_once_make_one_approval(company: Company) -> None:
    row = company.propose()
    start = threading.Barrier(2)
    outcomes: list[str] = []

    def decide(approver: Any) -> None:
        try:
            start.wait(timeout=10)
            company.approve(row, approver=approver)
        except IllegalTransition:
            outcomes.append("too late")
        else:
            outcomes.append("approved")
        finally:
            connection.close()

    threads = [threading.Thread(target=decide, args=[person]) for person in (company.omar, company.olga)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert sorted(outcomes) == ["approved", "too late"]
    assert actions(row) == ["promotion.proposed", "promotion.approved"]


@pytest.mark.django_db(transaction=True)
def test_a_guard_and_a_person_at_once_leave_one_outcome(company: Company, node: Any) -> None:
    row = in_canary(company)
    company.calls(60, by=company.v2)
    start = threading.Barrier(2)
    problems: list[Exception] = []

    def run(work: Any) -> None:
        try:
            start.wait(timeout=10)
            work()
        except Refused as error:
            problems.append(error)
        finally:
            connection.close()

    def guard() -> None:
        rollout.judge_canary(promotion_id=row.pk, now=NOW)

    def person() -> None:
        rollout.roll_back(deployment=company.deployment, actor_user=company.omar, reason="stop", now=NOW)

    threads = [threading.Thread(target=run, args=[work]) for work in (guard, person)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    # Whoever came first, the person's word stands in the end: v1 answers and nothing is half done.
    assert problems == []
    assert company.who()[:3] == ("desk-v1", None, 0.0)
    assert Promotion.objects.get().state == "rolled_back"
