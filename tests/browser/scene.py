"""A believable organization for the console's tests and screenshots: an airline's runs, a support desk that
learns,
promotions in every state, people in every role, and strangers next door.

Decisions go through the product's services; what processes would have written (calls, progress, evidence)
is written here."""

import hashlib
import json
import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from django.conf import settings
from django.contrib.auth.hashers import make_password
from django.db import transaction

from accounts import services as accounts
from accounts.models import ApiKey, Organization, Project, Role, User
from audit import sealer
from audit.actions import Actor
from gateway import services as routing
from gateway.services import TargetSetting
from kernel.ids import uuid7
from learning import reward_specs
from learning.evaluation import gate
from learning.evaluation.jobs import evidence_digest
from learning.models import (
    DatasetSnapshot,
    Episode,
    Evaluation,
    EvaluationVerdict,
    JobState,
    RewardSpecVersion,
    TrainingJob,
)
from learning.rewards.spec import SUPPORT_DESK
from learning.training import location
from release import promotion as promotions
from release import rollout
from release.models import Deployment, ModelVersion, PolicyNode, Promotion, PromotionState
from telemetry.models import Call, CallOutcome, CaptureLoss, Run, RunState, Signal, Step
from tests.fakes.bodies import keep_body

PASSWORD = "correct horse battery"
CREDENTIAL = "sk-of-the-provider"
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"
SETUP = Actor.service("command line")

POLICY = """# Airline Agent Policy

The current time is 2024-05-15 15:00:00 EST.

Before any action that changes a booking, list its details and obtain an explicit yes.
Make one tool call at a time. Deny requests that are against this policy."""
AIRLINE = [
    ("user", "Hi, I need to cancel my flight to Chicago, reservation 4WQ150. My sister is ill."),
    ("assistant", "I'm sorry to hear that. May I have your user id, to look at the reservation?"),
    ("user", "It's chen_jackson_3290."),
    ("call", "get_reservation_details", {"reservation_id": "4WQ150"}),
    ("tool", {"reservation_id": "4WQ150", "origin": "DFW", "destination": "LAX", "cabin": "basic_economy",
              "created_at": "2024-05-02T03:10:19", "insurance": "yes", "total_baggages": 2}),
    ("assistant", "It is basic economy and was booked more than 24 hours ago. As you bought insurance and "
                  "the reason is a health matter, I can cancel it and refund your card. Shall I?"),
    ("user", "Yes, please."),
    ("call", "cancel_reservation", {"reservation_id": "4WQ150"}),
    ("tool", {"status": "cancelled", "refund": {"payment_id": "credit_card_3563913", "amount": 748}}),
    ("assistant", "It is cancelled. $748 go back to your card within 5 to 7 business days."),
]  # fmt: skip


@dataclass
class Scene:
    """What the tests point at."""

    now: datetime
    organization: Organization
    airline: Project
    desk: Project
    airline_key: str
    desk_key: str
    maya: User
    """Operator; requested every promotion."""
    omar: User
    """Approver."""
    vera: User
    """Viewer."""
    root: User
    """Superuser without a role."""
    sam: User
    """Admin of another organization."""
    strangers: Project
    strangers_key: str
    proposed: Promotion
    approved: Promotion
    canary: Promotion
    champion: Promotion
    rejected: Promotion
    deployment: Deployment
    """Of the alias whose champion came by promotion."""
    running_job: TrainingJob
    hostile_run: Run


def person(name: str, **more: Any) -> User:
    """Somebody who can sign in."""
    return User.objects.create(username=name, password=_hashed(PASSWORD), **more)


@cache  # hashing a password takes a third of a second, by design
def _hashed(password: str) -> str:
    return make_password(password)


def project_of(organization: Organization, name: str, now: datetime) -> tuple[Project, str]:
    """A project and the text of its key."""
    project = accounts.create_project(organization=organization, name=name, actor=SETUP, now=now)
    _, key = accounts.create_api_key(project=project, name="production", actor=SETUP, now=now)
    return project, key


@transaction.atomic  # one commit instead of two thousand
def build(now: datetime, *, tickets: int = 40, canary_runs: int = 60) -> Scene:
    """Write the whole scene, as of `now`."""
    rng = random.Random(7)
    maya, omar, vera = person("maya"), person("omar"), person("vera")
    root, sam = person("root", is_superuser=True, is_staff=True), person("sam")
    past = now - timedelta(days=3)
    organization = accounts.create_organization(name="Northwind Air", actor=SETUP, now=past)
    for user, role in [(maya, Role.OPERATOR), (omar, Role.APPROVER), (vera, Role.VIEWER)]:
        accounts.add_member(organization=organization, user=user, role=role, actor=SETUP, now=past)
    airline, airline_key = project_of(organization, "airline-desk", past)
    desk, desk_key = project_of(organization, "support-desk", past)
    other = accounts.create_organization(name="Globex", actor=SETUP, now=past)
    accounts.add_member(organization=other, user=sam, role=Role.ADMIN, actor=SETUP, now=past)
    strangers, strangers_key = project_of(other, "globex-secret", past)

    for project in (airline, desk, strangers):
        _route(project, past)
    hostile_run = _airline_traffic(airline, rng, now)
    write_run(
        strangers, _conversation(), task="globex-secret-task", reward=1.0, started=now - timedelta(hours=1)
    )
    learned = _Learning(desk, rng, now)
    learned.episodes(tickets)
    outcomes = learned.promotions(maya, omar, canary_runs)
    learned.failed_job(maya)
    running = learned.running_job(maya)
    CaptureLoss.objects.create(
        process="gateway-1", boot="b71f2c", first_sequence=4810, last_sequence=4812, count=3, reason="spool_full",
        recorded_at=now - timedelta(hours=2),
    )  # fmt: skip
    PolicyNode.objects.create(
        name="embedded", base_url="http://127.0.0.1:8402", base_model="support-desk-base",
        base_sha256=_sha("base"),
        seen_at=now, loaded=["support-desk-base", "support-desk-v2-1f0a22"],
    )  # fmt: skip
    sealer.seal_due(now=now)
    return Scene(
        now=now, organization=organization, airline=airline, desk=desk, airline_key=airline_key,
        desk_key=desk_key,
        maya=maya, omar=omar, vera=vera, root=root, sam=sam, strangers=strangers, strangers_key=strangers_key,
        deployment=outcomes["champion"].deployment, running_job=running, hostile_run=hostile_run, **outcomes,
    )  # fmt: skip


def write_run(
    project: Project,
    messages: list[dict[str, Any]],
    *,
    task: str,
    reward: float | None,
    started: datetime,
    name: str = "",
    version: ModelVersion | None = None,
    deployment: Deployment | None = None,
    is_canary: bool = False,
    confidence: float = 1.0,
) -> Run:
    """A run as ingest and stitching leave it: one step and one call for each assistant message."""
    key = ApiKey.objects.get(project=project)
    ends = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    last = started + timedelta(seconds=9 * len(ends))
    run = Run.objects.create(
        project=project, api_key=key, name=name, state=RunState.CLOSED, revision=len(ends), task_key=task,
        model_alias="support-desk" if version else "gpt-4o", confidence=confidence, step_count=len(ends),
        call_count=len(ends), started_at=started, latest_call_at=last, closed_at=last,
    )  # fmt: skip
    parent = None
    for index, end in enumerate(ends):
        least = confidence if index == 1 else 1.0
        reason = "opening" if index == 0 else "echo" if least == 1.0 else "echo_ambiguous"
        parent = Step.objects.create(
            project=project, run=run, index=index, parent=parent, confidence=least, reason=reason
        )
        begun = started + timedelta(seconds=9 * index)
        call = Call.objects.create(
            id=uuid7(), project=project, api_key=key, step=parent, process="gateway-1", boot="b71f2c",
            sequence=Call.objects.count(), dialect="chat", method="POST", path="/v1/chat/completions",
            model_requested=run.model_alias,
            model_served=version.served_name if version else "gpt-4o-2024-08-06",
            model_version_id=version.pk if version else None,
            deployment_id=deployment.pk if deployment else None,
            is_canary=is_canary, status_code=200, outcome=CallOutcome.COMPLETE,
            response_id=f"chatcmpl-{uuid7().hex[-12:]}",
            finish_reason="tool_calls" if messages[end].get("tool_calls") else "stop",
            prompt_tokens=1400 + 90 * index, completion_tokens=40 + 7 * index, started_at=begun,
            first_byte_at=begun + timedelta(milliseconds=480), ended_at=begun + timedelta(milliseconds=1900),
            stitched_at=begun,
        )  # fmt: skip
        keep_body(
            call,
            request=json.dumps({"model": run.model_alias, "messages": messages[:end]}).encode(),
            response=json.dumps(
                {"id": call.response_id, "choices": [{"index": 0, "message": messages[end]}]}
            ).encode(),
        )
    if reward is not None:
        write_signal(project, run=run, name="reward", value=reward, at=last)
    return run


def _route(project: Project, at: datetime) -> None:
    """An upstream with a fallback, an alias over both, limits of the project and of its key."""
    by: dict[str, Any] = {"project": project, "actor": SETUP, "now": at}
    for priority, name in enumerate(("openai", "azure")):
        routing.set_upstream(
            name=name,
            base_url=f"https://{name}-of-{project.name}.example.com/v1",
            credential=f"{CREDENTIAL}-{name}",
            priority=priority,
            prices={"gpt-4o": {"input": 2.5, "output": 10, "cached_input": 1.25}},
            **by,
        )
    targets = [
        TargetSetting(upstream="openai", model="gpt-4o", weight=9),
        TargetSetting(upstream="azure", model="gpt-4o", priority=1),
    ]
    routing.set_alias(name=f"smart-of-{project.name}", targets=targets, **by)
    key = project.api_keys.get()
    routing.set_limit(api_key=None, measure="microusd", amount=50_000_000, window_s=86_400, **by)
    routing.set_limit(api_key=key, measure="requests", amount=600, window_s=60, **by)


def write_signal(
    project: Project, *, run: Run | None, name: str, value: Any, at: datetime, target: str = ""
) -> Signal:
    """A signal that found its run, or with `run=None` one that did not."""
    return Signal.objects.create(
        id=uuid7(), project=project, api_key=ApiKey.objects.get(project=project),
        target_type="run_id" if run else "response_id", target=str(run.pk) if run else target, run=run,
        name=name,
        value=value, observed_at=at, received_at=at, stored_at=at,
    )  # fmt: skip


@cache
def evidence(champion: float, candidate: float, tasks: int = 300) -> dict[str, Any]:
    """What the real gate makes of contenders with about these success rates."""
    rng = random.Random(f"{champion} {candidate}")
    return gate.decide(
        [_played(rng, f"heldout-{n:04d}", champion, calls=3) for n in range(tasks)],
        [_played(rng, f"heldout-{n:04d}", candidate, calls=2) for n in range(tasks)],
        GENEROUS,
        seed=11,
    ).figures


GENEROUS = gate.GatePolicy(max_risk_increase=0.05)


def _played(rng: random.Random, task: str, success_rate: float, *, calls: int) -> gate.TaskResult:
    success = rng.random() < success_rate
    risk = 0.0 if success or rng.random() < 0.9 else 1.0
    kind = "answer" if success else "refund" if risk else rng.choice(["escalate", "answer"])
    calls = calls + rng.randint(0, 1)
    return gate.TaskResult(
        task_id=task, success=success, reward=float(success) - 0.02 * calls - 0.5 * risk, risk=risk,
        model_calls=calls, tool_calls=calls - 1, answer_kind=kind,
    )  # fmt: skip


def _conversation(extra: str = "") -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": POLICY}]
    for index, (kind, *rest) in enumerate(AIRLINE):
        if kind == "call":
            function = {"name": rest[0], "arguments": json.dumps(rest[1])}
            call = {"id": f"call_{index}", "type": "function", "function": function}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "tool":
            messages.append(
                {"role": "tool", "tool_call_id": f"call_{index - 1}", "content": json.dumps(rest[0])}
            )
        else:
            messages.append({"role": kind, "content": str(rest[0])})
    if extra:
        messages[1]["content"] = f"{messages[1]['content']} {extra}"
    return messages


def _airline_traffic(project: Project, rng: random.Random, now: datetime) -> Run:
    spec = reward_specs.publish(
        project=project, name="airline", document={"schema": 2, "name": "airline",
                  "outcome": {"reward": {"signal": "reward", "weight": 1.0, "missing": "none"}}},
        actor=SETUP, now=now - timedelta(days=2),
    )  # fmt: skip
    for number in range(24):
        reward = rng.choice([1.0, 0.0, 1.0, None])
        run = write_run(
            project, _conversation(), task=f"airline-{number % 6:03d}", reward=reward,
            started=now - timedelta(minutes=25 * number + 12), confidence=0.5 if number == 3 else 1.0,
        )  # fmt: skip
        write_episode(run, spec, reward, {"cost": 0.0, "risk": 0.0, "step": 0.0})
    hostile = write_run(
        project, _conversation(HOSTILE), task=f"task {HOSTILE}", reward=0.0, name=f"nightly {HOSTILE}",
        started=now - timedelta(minutes=3),
    )  # fmt: skip
    write_signal(project, run=hostile, name="comment", value=HOSTILE, at=now - timedelta(minutes=1))
    write_signal(
        project, run=None, name="csat", value=4, at=now - timedelta(minutes=30), target="chatcmpl-never-seen"
    )
    broken = Call.objects.filter(project=project).order_by("-started_at").first()
    assert broken is not None
    Call.objects.filter(pk=broken.pk).update(outcome=CallOutcome.UPSTREAM_CUT, finish_reason="")
    return hostile


def write_episode(
    run: Run, spec: RewardSpecVersion, outcome: float | None, parts: dict[str, float]
) -> Episode:
    """The episode of a run; its parts add up to its reward."""
    whole = parts if outcome is None else {"outcome": outcome, **parts}
    entries = [
        {"term": part, "part": part, "step": None, "amount": amount, "why": f"{part} is {amount:g}, weight 1",
         "evidence": ["the user said \u201cthank you\u201d"] if part == "outcome" else []}
        for part, amount in whole.items()
    ]  # fmt: skip
    reward = {"total": None if outcome is None else sum(whole.values()), "waterfall": entries}
    reward |= {"missing": [] if outcome is not None else ["reward"], "not_final": [], "veto": ""}
    payload = json.dumps({"run": str(run.pk), "reward": reward}, sort_keys=True).encode()
    return Episode.objects.create(
        project=run.project, run_id=run.pk, run_revision=run.revision, reward_spec=spec,
        task_key=run.task_key,
        step_count=run.step_count, reward=None if outcome is None else sum(whole.values()),
        reward_parts=whole,
        payload=payload, sha256=hashlib.sha256(payload).hexdigest(), created_at=run.latest_call_at,
    )  # fmt: skip


class _Learning:
    """The support desk's learning: one line of versions for each state a promotion can be in."""

    def __init__(self, desk: Project, rng: random.Random, now: datetime) -> None:
        self.desk, self.rng, self.now = desk, rng, now
        self.spec = reward_specs.publish(
            project=desk,
            name="support-desk",
            document=SUPPORT_DESK.to_dict(),
            actor=SETUP,
            now=now - timedelta(days=2),
        )
        self.snapshot: DatasetSnapshot | None = None

    def episodes(self, count: int) -> None:
        for number in range(count):
            question = [
                {"role": "system", "content": "You answer tickets of the support desk."},
                {"role": "user", "content": f"Where is order {4100 + number}?"},
                {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function",
                "function": {"name": "find_order", "arguments": json.dumps({"order": 4100 + number})}}]},
                {"role": "tool", "tool_call_id": "c1", "content": '{"status": "shipped", "carrier": "DHL"}'},
                {"role": "assistant", "content": "It was shipped with DHL and arrives tomorrow."},
            ]  # fmt: skip
            outcome = self.rng.choice([1.0, 1.0, 0.0])
            run = write_run(
                self.desk, question, task=f"ticket-{number % 20:03d}", reward=outcome,
                started=self.now - timedelta(minutes=9 * number + 4),
            )  # fmt: skip
            risk, step = (-0.5, -0.2) if number % 17 == 0 else (0.0, 0.0)
            write_episode(run, self.spec, outcome, {"cost": -0.04, "risk": risk, "step": step})
        self.snapshot = DatasetSnapshot.objects.create(
            project=self.desk, name="first-week", reward_spec=self.spec, episode_count=count,
            root=_sha("root"),
            file_sha256=_sha("file"), location=f"snapshots/{_sha('root')[:12]}.jsonl",
            manifest={"episodes": count, "with_reward": count, "from": "2026-11-18", "to": "2026-11-21"},
            frozen_at=self.now - timedelta(hours=20),
        )  # fmt: skip

    def job(self, line: str, maya: User, state: JobState, **more: Any) -> TrainingJob:
        began = self.now - timedelta(hours=18)
        values: dict[str, Any] = {
            "project": self.desk, "model_line": line, "state": state, "snapshot": self.snapshot,
            "reward_spec": self.spec,
            "algorithm": "grpo", "base_model": "/srv/models/support-desk-base", "base_sha256": _sha("base"),
            "environment": "support_desk", "environment_digest": _sha("environment"),
            "requested_by": maya.username,
            "config": {"steps": 100, "prompts_per_step": 8, "generations": 8, "learning_rate": 6e-4,
            "lora_rank": 16},
            "plan": {"algorithm": "grpo", "tasks": [], "reasons": [
                "60 episodes name 20 different tasks; 20 of them are training tasks of support_desk.",
                "The environment can play them, so rollouts are on-policy: GRPO.",
            ]},
            "progress": {"step": 100, "steps": 100, "reward": 0.71, "success": 0.79, "loss": 0.012,
            "time_left_s": 0.0},
            "lease_epoch": 1, "seed": 11, "created_at": began, "updated_at": began, "started_at": began,
            "finished_at": began + timedelta(seconds=94),
        }  # fmt: skip
        return TrainingJob.objects.create(**(values | more))

    def running_job(self, maya: User) -> TrainingJob:
        began = self.now - timedelta(seconds=41)
        job = self.job(
            "support-desk", maya, JobState.RUNNING, created_at=began, started_at=began, finished_at=None,
            progress={"step": 56, "steps": 100, "reward": 0.634, "success": 0.703, "risk": 0.02,
            "loss": 0.0146, "time_left_s": 31.8},
        )  # fmt: skip
        lines = [
            {
                "step": step,
                "steps": 100,
                "reward": 0.28 + 0.36 * (1 - 0.96**step) + self.rng.uniform(-0.03, 0.03),
            }
            for step in range(1, 57)
        ]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        settings.OBJECT_STORE.write(f"{location(job.pk, job.lease_epoch)}/progress.jsonl", text.encode())
        return job

    def failed_job(self, maya: User) -> TrainingJob:
        return self.job(
            "triage", maya, JobState.FAILED, progress={"step": 12, "steps": 100, "reward": 0.02},
            error="reward collapsed: 0 of 64 rollouts ended with an answer in 5 steps in a row",
        )  # fmt: skip

    def version(self, line: str, number: int, job: TrainingJob | None = None) -> ModelVersion:
        digest = _sha(f"{line}{number}") if job else ""
        return ModelVersion.objects.create(
            project=self.desk, line=line, number=number, base_model="/srv/models/support-desk-base",
            base_sha256=_sha("base"), adapter_path=f"models/{line}/v{number}-{digest[:12]}" if job else "",
            adapter_sha256=digest,
            served_name=f"{line}-v{number}-{digest[:12]}" if job else "support-desk-base",
            job=job, created_at=self.now - timedelta(hours=18 - number),
        )  # fmt: skip

    def propose(self, line: str, maya: User, *, champion: float, candidate: float) -> Promotion:
        """A line with its base as champion, a trained candidate, a passed evaluation, and the proposal."""
        base = self.version(line, 1)
        rollout.create_deployment(
            project=self.desk, alias=line, champion=base, actor=SETUP, now=self.now - timedelta(hours=20)
        )
        trained = self.version(
            line, 2, self.job(line, maya, JobState.SUCCEEDED, result={"steps": 100, "seconds": 94.2})
        )
        document = evidence(champion, candidate)
        at = self.now - timedelta(hours=3)
        evaluation = Evaluation.objects.create(
            project=self.desk, champion_id=base.pk, candidate_id=trained.pk, environment="support_desk",
            environment_digest=_sha("environment"), reward_spec=self.spec, base_model=base.base_model,
            task_count=300,
            state=JobState.SUCCEEDED, verdict=EvaluationVerdict.PASS, evidence=document,
            evidence_digest=evidence_digest(document), progress={"step": 600, "steps": 600}, seed=11,
            created_at=at,
            updated_at=at, started_at=at, finished_at=at + timedelta(seconds=38),
        )  # fmt: skip
        return promotions.propose(
            evaluation=evaluation, requested_by=maya, now=self.now - timedelta(hours=2),
            reason="Learned from the first week's tickets; better at looking up orders before it answers.",
        )  # fmt: skip

    def promotions(self, maya: User, omar: User, canary_runs: int) -> dict[str, Promotion]:
        """One alias for each state, since an alias has one open promotion at most."""
        yes = "The gate passed clearly, and a person confirms the refunds among the worst flips anyway."
        proposed = self.propose("support-desk", maya, champion=0.4133, candidate=0.7667)
        approved = self.propose("support-desk-eu", maya, champion=0.42, candidate=0.69)
        canary = self.propose("refunds", maya, champion=0.55, candidate=0.68)
        champion = self.propose("billing", maya, champion=0.40, candidate=0.78)
        rejected = self.propose("returns", maya, champion=0.58, candidate=0.72)
        for promotion in (approved, canary, champion):
            promotions.approve(
                promotion=promotion, approver=omar, reason=yes, now=self.now - timedelta(hours=1)
            )
        promotions.reject(
            promotion=rejected, approver=omar, now=self.now - timedelta(hours=1),
            reason="It stopped asking for the order number: two worst flips refund the wrong customer.",
        )  # fmt: skip
        self._canary(canary, canary_runs)
        self._champion(champion)
        return {
            name: Promotion.objects.get(pk=row.pk)
            for name, row in {
                "proposed": proposed, "approved": approved, "canary": canary, "champion": champion,
                "rejected": rejected,
            }.items()
        }  # fmt: skip

    def _canary(self, promotion: Promotion, runs: int) -> None:
        began = self.now - timedelta(minutes=20)
        Promotion.objects.filter(pk=promotion.pk).update(
            state=PromotionState.CANARY, canary_started_at=began, verdict="15 of 50 canary calls"
        )
        Deployment.objects.filter(pk=promotion.deployment_id).update(
            canary=promotion.candidate, canary_share=0.25, generation=2
        )
        talk = [
            {"role": "user", "content": "Refund order 881, please."},
            {"role": "assistant", "content": "Done."},
        ]
        for number in range(runs):
            is_canary = number % 4 == 0
            write_run(
                self.desk, talk, task="", reward=None, started=began + timedelta(seconds=9 * number),
                version=promotion.candidate if is_canary else promotion.previous,
                deployment=promotion.deployment,
                is_canary=is_canary,
            )  # fmt: skip

    def _champion(self, promotion: Promotion) -> None:
        at = self.now - timedelta(minutes=40)
        Promotion.objects.filter(pk=promotion.pk).update(
            state=PromotionState.CHAMPION, canary_started_at=at - timedelta(minutes=15), champion_at=at,
            finished_at=at,
            verdict="64 canary calls, 0.0% failed (champion: 0.5% of 188)",
        )  # fmt: skip
        Deployment.objects.filter(pk=promotion.deployment_id).update(
            champion=promotion.candidate, generation=3
        )


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
