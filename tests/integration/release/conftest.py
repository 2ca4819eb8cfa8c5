"""A small company with people of every role, an alias with its base model, a trained candidate that passed
the gate, and a policy node made of a few lines of HTTP."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from accounts.models import ApiKey, Member, Organization, Project, Role, User
from audit.actions import Actor
from kernel.ids import uuid7
from kernel.objects import ObjectStore
from learning.artifacts import directory_digest
from learning.evaluation.jobs import evidence_digest
from learning.models import DatasetSnapshot, Evaluation, RewardSpecVersion, TrainingJob
from release import promotion, rollout
from release.models import Deployment, ModelVersion, PolicyNode, Promotion
from telemetry.models import Call

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
BASE = "b" * 64
EVIDENCE = {"reasons": ["Success rises by 38 points."], "difference": "0.3800"}


@dataclass
class Company:
    """Rows that a test starts from. `maya` asks, `omar` and `olga` decide; the others may not."""

    project: Project
    key: ApiKey
    maya: User
    omar: User
    olga: User
    viewer: User
    stranger: User
    v1: ModelVersion
    v2: ModelVersion
    deployment: Deployment
    evaluation: Evaluation
    store: ObjectStore

    def propose(self, **changes: Any) -> Promotion:
        fields = {
            "evaluation": self.evaluation,
            "requested_by": self.maya,
            "reason": "the gate passed",
            "now": NOW,
        }
        return promotion.propose(**{**fields, **changes})

    def approve(self, row: Promotion, **changes: Any) -> Promotion:
        fields = {"promotion": row, "approver": self.omar, "reason": "worst cases are fine", "now": NOW}
        return promotion.approve(**{**fields, **changes})

    def calls(self, count: int, *, by: ModelVersion, outcome: str = "complete", took_ms: int = 100) -> None:
        """Calls that `by` answered since the canary began."""
        began = NOW + timedelta(seconds=1)
        Call.objects.bulk_create(
            Call(
                id=uuid7(),
                project=self.project,
                api_key=self.key,
                process="gateway-1",
                boot=str(uuid7()),
                sequence=index,
                method="POST",
                path="/v1/chat/completions",
                model_version_id=by.pk,
                deployment_id=self.deployment.pk,
                is_canary=by.pk == self.v2.pk,
                outcome=outcome,
                started_at=began,
                ended_at=began + timedelta(milliseconds=took_ms),
            )
            for index in range(count)
        )

    def who(self) -> tuple[str, str | None, float, int]:
        """Who answers the alias, as the table says: champion, canary, share, generation."""
        row = Deployment.objects.select_related("champion", "canary").get(pk=self.deployment.pk)
        return row.champion.name, row.canary.name if row.canary else None, row.canary_share, row.generation

    def version(self, number: int) -> tuple[ModelVersion, Evaluation]:
        """A further trained version of the line, with its passed evaluation against the present champion."""
        champion = Deployment.objects.get(pk=self.deployment.pk).champion
        version = trained(self.project, number, self.store)
        return version, passed(self.project, champion, version)


def adapter(folder: Path, content: bytes = b"") -> str:
    """Write the smallest thing that counts as an adapter; returns its digest."""
    folder.mkdir(parents=True)
    header = b"{}"
    (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 16}))
    return directory_digest(folder)


def training_job(project: Project, number: int, **changes: Any) -> TrainingJob:
    spec, _ = RewardSpecVersion.objects.get_or_create(
        project=project,
        name="desk",
        version=1,
        defaults={"document": {}, "digest": "d" * 64, "created_at": NOW},
    )
    snapshot, _ = DatasetSnapshot.objects.get_or_create(
        project=project,
        name="week-1",
        defaults={
            "reward_spec": spec,
            "episode_count": 3,
            "root": "a" * 64,
            "file_sha256": "f" * 64,
            "location": "snapshots/week-1.jsonl",
            "manifest": {},
            "frozen_at": NOW,
        },
    )
    fields = {
        "project": project,
        "model_line": "desk",
        "snapshot": snapshot,
        "reward_spec": spec,
        "algorithm": "grpo",
        "base_model": "/models/desk-base",
        "base_sha256": BASE,
        "environment": "support_desk",
        "environment_digest": "c" * 64,
        "requested_by": "maya",
        "state": "succeeded",
        "seed": number,
        "created_at": NOW,
        "updated_at": NOW,
        "finished_at": NOW,
    }
    return TrainingJob.objects.create(**{**fields, **changes})


def trained(project: Project, number: int, store: ObjectStore) -> ModelVersion:
    location = f"models/desk/v{number}-test"
    digest = adapter(store.path(location), content=str(number).encode())
    return ModelVersion.objects.create(
        project=project,
        line="desk",
        number=number,
        base_model="/models/desk-base",
        base_sha256=BASE,
        adapter_path=location,
        adapter_sha256=digest,
        served_name=f"desk-v{number}-{digest[:12]}",
        job=training_job(project, number),
        created_at=NOW,
    )


def passed(
    project: Project, champion: ModelVersion, candidate: ModelVersion, verdict: str = "pass"
) -> Evaluation:
    return Evaluation.objects.create(
        project=project,
        champion_id=champion.pk,
        candidate_id=candidate.pk,
        environment="support_desk",
        environment_digest="c" * 64,
        reward_spec=RewardSpecVersion.objects.get(project=project),
        base_model="/models/desk-base",
        task_count=300,
        state="succeeded",
        verdict=verdict,
        evidence=EVIDENCE,
        evidence_digest=evidence_digest(EVIDENCE),
        created_at=NOW,
        updated_at=NOW,
        finished_at=NOW,
    )


class Helpers:
    """What tests make rows and files with; a class, because test files do not import each other."""

    adapter = staticmethod(adapter)
    training_job = staticmethod(training_job)


@pytest.fixture
def helpers() -> type[Helpers]:
    return Helpers


@pytest.fixture
def store(tmp_path: Path, settings: Any) -> ObjectStore:
    settings.OBJECT_STORE = settings.LARGE_OBJECTS = ObjectStore(tmp_path / "objects")
    return settings.OBJECT_STORE  # type: ignore[no-any-return]


@pytest.fixture
def company(db: None, store: ObjectStore) -> Company:
    organization = Organization.objects.create(name="Acme", created_at=NOW)
    other = Organization.objects.create(name="Other", created_at=NOW)
    project = Project.objects.create(organization=organization, name="desk", created_at=NOW)
    people = {}
    for name, role, where in [
        ("maya", Role.OPERATOR, organization),
        ("omar", Role.APPROVER, organization),
        ("olga", Role.ADMIN, organization),
        ("viewer", Role.VIEWER, organization),
        ("stranger", Role.ADMIN, other),
    ]:
        people[name] = User.objects.create(username=name)
        Member.objects.create(organization=where, user=people[name], role=role, created_at=NOW)
    key = ApiKey.objects.create(project=project, name="k", prefix="rk_1", digest=b"k" * 32, created_at=NOW)
    v1 = ModelVersion.objects.create(
        project=project,
        line="desk",
        number=1,
        base_model="/models/desk-base",
        base_sha256=BASE,
        served_name="desk-base",
        created_at=NOW,
    )
    deployment = rollout.create_deployment(
        project=project, alias="desk", champion=v1, actor=Actor.service("test"), now=NOW
    )
    v2 = trained(project, 2, store)
    evaluation = passed(project, v1, v2)
    return Company(
        project=project,
        key=key,
        v1=v1,
        v2=v2,
        deployment=deployment,
        evaluation=evaluation,
        store=store,
        **people,
    )


@dataclass
class FakeNode:
    """The far side of the wire: what a policy node lists, loads and answers."""

    url: str = ""
    names: list[str] = field(default_factory=lambda: ["desk-base"])
    loads: list[dict[str, str]] = field(default_factory=list)
    answer_status: int = 200


@pytest.fixture
def wire() -> Iterator[FakeNode]:
    node = FakeNode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say(200, {"object": "list", "data": [{"id": name} for name in node.names]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path == "/v1/load_lora_adapter":
                node.loads.append(body)
                node.names.append(body["lora_name"])
                self._say(200, {})
            elif body["model"] in node.names:
                self._say(node.answer_status, {})
            else:
                self._say(404, {})

        def _say(self, status: int, document: dict[str, Any]) -> None:
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    node.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield node
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def node(company: Company, wire: FakeNode) -> PolicyNode:
    """A registered node that has the candidate loaded."""
    wire.names.append(company.v2.served_name)
    return PolicyNode.objects.create(
        name="node-1",
        base_url=wire.url,
        base_model="/models/desk-base",
        base_sha256=BASE,
        loaded=list(wire.names),
    )
