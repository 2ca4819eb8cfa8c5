"""The demo: production traffic turns into a better model that a person approved and the ledger explains.

Six chapters on the running product, through its public doors only. `demo.doors` are the doors, `demo.traffic` and
`demo.agent` the customers; here is what happens in which order, what a newcomer sees, and the report."""

import asyncio
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from config.environment import Environment
from demo import agent, report, tamper, traffic
from demo.doors import Project, Visitor, last_json, manage, wait_for
from demo.recorded import load_runs, serve_in_background
from learning.environments.registry import get_environment

AT_ONCE = 16
LIVE_BEFORE = 320
CANARY_RUNS = 160
LIVE_AFTER = 240
ALIAS = "support-desk"
PASSWORD = "RATCHET_DEMO_PASSWORD"


@dataclass
class Story:
    """What is being told, and what has been seen so far. `report` has the shape of `report.json`."""

    env: Environment
    hold: bool
    report: dict[str, Any] = field(default_factory=dict)
    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    sent: int = 0
    """Calls that the agents of both projects have sent and got an answer to."""
    tag: str = field(default_factory=lambda: time.strftime("%Y%m%d-%H%M%S"))
    """Names this telling's organization and people, so that a demo can be told twice on one database."""

    @property
    def organization(self) -> str:
        return f"Demo {self.tag}"

    def person(self, name: str) -> str:
        return f"{name}-{self.tag}"

    def chapter(self, number: int, title: str) -> None:
        self.console.print(f"\n[bold]{number}. {title}[/bold]")

    def say(self, text: str) -> None:
        self.console.print(f"   {text}")

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Any]:
        """A bar that moves, or where there is no terminal a line each tenth; yields a function that advances it
        by one, or to a number that was read elsewhere."""
        columns = (
            TextColumn("   {task.description}"),
            BarColumn(30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        said = 0
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(title, total=total, note="")

            def step(done: int | None = None, note: str = "", total: int | None = None) -> None:
                nonlocal said
                if done is None:
                    bar.advance(task)
                else:
                    bar.update(task, completed=done, note=note, total=total)
                tenths = int(bar.tasks[0].percentage) // 10
                if tenths > said and not self.console.is_terminal:
                    said = tenths
                    self.say(f"{title}: {bar.tasks[0].completed:.0f} of {bar.tasks[0].total:.0f} {note}")

            yield step


def tell(env: Environment, *, hold: bool, password: str) -> dict[str, Any]:
    """Tell the whole story on a product that is ready; return the report, which is also written to the home."""
    story = Story(env=env, hold=hold)
    began = time.monotonic()
    os.environ[PASSWORD] = password
    for name, role in [("maya", "operator"), ("omar", "approver")]:
        manage(
            "create_member", story.person(name), "--organization", story.organization, "--role", role,
            "--password-env", PASSWORD,
        )  # fmt: skip
    airline = _real_traffic(story)
    desk = _live_agent(story)
    promotion = _learning(story, desk)
    _approval(story, desk, promotion, password)
    _promotion(story, desk, promotion, password)
    _proof(story, desk)
    story.report["lost_calls"] = _lost(story, airline, desk)
    story.report["seconds"] = round(time.monotonic() - began, 1)
    path = report.write(story.report, env.home / "demo")
    story.console.print()
    story.console.print(report.table(story.report))
    story.console.print(f"Report: {path}")
    sys.stdout.flush()
    return story.report


def _create_project(story: Story, name: str, *more: str) -> Project:
    printed = last_json(manage("create_project", name, "--organization", story.organization, *more))
    return Project(name, printed["api_key"], printed["base_url"], story.env.console_url)


def _real_traffic(story: Story) -> Project:
    story.chapter(1, "Real traffic: 100 recorded airline runs, only the base URL and the key changed")
    runs = load_runs()
    calls = sum(message["role"] == "assistant" for run in runs for message in run["traj"])
    with serve_in_background() as upstream:
        project = _create_project(story, f"airline-{story.tag}", "--upstream", f"{upstream}/v1")
        spec = story.env.home / "demo" / "airline-reward.json"
        spec.parent.mkdir(parents=True, exist_ok=True)
        outcome = {"reward": {"signal": "reward", "weight": 1.0, "missing": "none"}}
        spec.write_text(json.dumps({"schema": 2, "name": "airline", "outcome": outcome}))
        manage("publish_reward", "--project", project.name, "--file", str(spec))
        with story.progress(f"replaying, {AT_ONCE} runs at once", calls) as step:
            seen = asyncio.run(
                traffic.replay(
                    runs, base_url=project.base_url, api_key=project.api_key, at_once=AT_ONCE, on_call=step
                )
            )

    def settled() -> dict[str, Any] | None:
        summary: dict[str, Any] = project.get("summary")
        ready = (
            summary["calls"] == calls
            and summary["unstitched_calls"] == 0
            and summary["episodes"] >= len(runs)
        )
        return summary if ready else None

    summary = wait_for("every call in its run, every run scored", settled, timeout_s=90)
    story.sent += len(seen.run_of_response)
    stitched = {call["response_id"]: call["run_id"] for call in project.pages("calls")}
    groups = [group["runs"] for group in summary["task_groups"]]
    story.report["real_traffic"] = {
        "runs": summary["runs"],
        "calls": summary["calls"],
        "strays": traffic.strays(seen.run_of_response, seen.history_of_response, stitched),
        "mean_reward": round(summary["mean_reward"], 4),
        "groups": len(groups),
    }
    found = story.report["real_traffic"]
    story.say(
        f"{found['calls']} calls -> {found['runs']} runs, {found['strays']} strays, mean reward "
        f"{found['mean_reward']:.2f}, {found['groups']} groups of {'/'.join(str(n) for n in sorted(set(groups)))}"
    )
    return project


def _live_agent(story: Story) -> Project:
    story.chapter(2, "A live agent: the support desk works on our own policy server, through the gateway")
    desk = _create_project(story, f"support-desk-{story.tag}")
    manage("deploy", ALIAS, "--project", desk.name, "--base", str(story.env.base_model))
    spec = Path(__file__).with_name("data") / "support_desk_reward.yaml"
    manage("publish_reward", "--project", desk.name, "--file", str(spec))
    tasks = get_environment("support_desk").task_ids("train", LIVE_BEFORE)
    worked = _work(story, desk, tasks, f"{LIVE_BEFORE} tickets")
    story.report["live_before"] = {"runs": len(worked), "success": _success(worked)}
    story.say(f"success {_success(worked):.1%}: this is production as it is today")
    return desk


def _learning(story: Story, desk: Project) -> dict[str, Any]:
    story.chapter(3, "Learning: snapshot, training job, candidate, evaluation")

    def scored() -> bool:
        return bool(desk.get("summary")["episodes"] >= LIVE_BEFORE)

    wait_for("an episode for every run", scored, timeout_s=60)
    snapshot = last_json(manage("freeze_snapshot", "first-week", "--project", desk.name))
    story.say(f"snapshot of {snapshot['episodes']} episodes, root {snapshot['root'][:16]}…")
    job = last_json(
        manage(
            "train", ALIAS, "--project", desk.name, "--snapshot", "first-week", "--environment", "support_desk",
            "--as", story.person("maya"),
        )
    )  # fmt: skip
    with story.progress("training (GRPO, LoRA)", 1) as step:

        def trained() -> dict[str, Any] | None:
            row: dict[str, Any] = desk.get(f"training-jobs/{job['job']}")
            now = row["progress"]
            if "step" in now:
                step(now["step"], f"reward {now.get('reward', 0):.2f}", total=now["steps"])
            if row["state"] == "failed":
                raise RuntimeError(f"training failed: {row['error']}")
            return row if row["state"] == "succeeded" else None

        row = wait_for("the training's end", trained, timeout_s=420)
    result = row["result"]
    story.report["training"] = {
        "algorithm": row["algorithm"],
        "steps": result["steps"],
        "seconds": round(result["seconds"], 1),
        "adapter_sha256": result["adapter_sha256"],
    }
    with story.progress("evaluating champion and candidate", 1) as step:

        def judged() -> dict[str, Any] | None:
            latest: list[dict[str, Any]] = desk.get("evaluations", limit=1)["items"]
            if not latest:
                return None
            now = latest[0]["progress"]
            if "step" in now:
                step(now["step"], now["arm"], total=now["steps"])
            if latest[0]["state"] == "failed":
                raise RuntimeError(f"evaluation failed: {latest[0]['error']}")
            return latest[0] if latest[0]["state"] == "succeeded" else None

        evaluation = wait_for("the gate's verdict", judged, timeout_s=240)
    evidence = evaluation["evidence"]
    story.report["evaluation"] = {
        "tasks": evaluation["task_count"],
        "champion": float(evidence["champion"]["success"]),
        "candidate": float(evidence["candidate"]["success"]),
        "difference": float(evidence["difference"]),
        "ci95": [float(evidence["ci95"][0]), float(evidence["ci95"][1])],
        "verdict": evaluation["verdict"],
    }
    for reason in evidence["reasons"]:
        story.say(reason)
    if evaluation["verdict"] != "pass":
        raise RuntimeError("the gate did not pass: nothing is proposed, and the champion stays")

    def proposed() -> dict[str, Any] | None:
        return next(iter(desk.get("promotions", limit=1)["items"]), None)

    promotion: dict[str, Any] = wait_for("the promotion's proposal", proposed, timeout_s=30)
    return promotion


def _approval(story: Story, desk: Project, promotion: dict[str, Any], password: str) -> None:
    story.chapter(4, "Approval: nothing moves without a person's decision, and not the requester's")
    page = f"{story.env.console_url}/promotions/{promotion['id']}/"
    reason = "The gate passed on held-out tickets and the worst flips are acceptable."
    if story.hold:
        story.say(f"Waiting for you: [bold]{page}[/bold]")
        story.say(
            f"Sign in as {story.person('omar')} with the password {password}; the story goes on after your approval."
        )

        def decided() -> bool:
            state = desk.get(f"promotions/{promotion['id']}")["state"]
            if state == "rejected":
                raise RuntimeError("you rejected the promotion: the champion stays, and the story ends here")
            return bool(state != "proposed")

        wait_for("your decision", decided, timeout_s=24 * 3600, every_s=1.0)
    else:
        manage("promote", ALIAS, "--project", desk.name, "--as", story.person("omar"), "--reason", reason)
    row = desk.get(f"promotions/{promotion['id']}")
    story.report["promotion"] = {
        "version": row["candidate"],
        "requested_by": row["requested_by"],
        "approved_by": row["decided_by"],
        "reason": row["decided_reason"],
    }
    story.say(f"{row['decided_by']} approved {row['candidate']}: “{row['decided_reason']}”")


def _promotion(story: Story, desk: Project, promotion: dict[str, Any], password: str) -> None:
    story.chapter(5, "Promotion: canary, champion, rollback and forward again, while the agent keeps working")
    new = story.report["promotion"]["version"]
    environment = get_environment("support_desk")
    fresh = iter(environment.task_ids("heldout", 4000, start=1000))

    def state() -> str:
        return str(desk.get(f"promotions/{promotion['id']}")["state"])

    wait_for("the canary's start", lambda: state() in {"canary", "champion"}, timeout_s=60)
    worked: list[agent.Worked] = []
    deadline = time.monotonic() + 180
    while state() == "canary" or not worked:
        worked += _work(story, desk, [next(fresh) for _ in range(CANARY_RUNS)], "tickets during the canary")
        if state() != "canary":
            break
        if time.monotonic() > deadline:
            raise TimeoutError("the canary came to no verdict")
        time.sleep(1.5)  # the guard looks once a second
    shares = Counter(run.version for run in worked)
    story.say(
        "canary: "
        + ", ".join(f"{version} answered {count} runs" for version, count in sorted(shares.items()))
    )
    # A run keeps its version while the shares stand; the promotion itself may fall into the middle of one.
    changes = [sum(a != b for a, b in pairwise(run.versions)) for run in worked]
    if max(changes) > 1 or any(n and run.version != new for n, run in zip(changes, worked, strict=True)):
        raise RuntimeError("the canary was not sticky: a run went back and forth between versions")
    wait_for("the new champion", lambda: state() == "champion", timeout_s=30)
    after = _work(
        story, desk, [next(fresh) for _ in range(LIVE_AFTER)], f"{LIVE_AFTER} tickets on the new champion"
    )
    after = [run for run in after if run.version == new]
    before = story.report["live_before"]["success"]
    story.report["live_after"] = {"runs": len(after), "success": _success(after)}
    story.say(f"live success {before:.1%} -> {_success(after):.1%}")

    old = desk.get("deployments")["items"][0]["previous"]
    omar = Visitor(story.env.console_url, story.person("omar"), password)
    deployment = desk.get("deployments")["items"][0]["id"]
    for wanted, why in [(old, "Drill: can we go back?"), (new, "Drill over: forward again.")]:
        pressed = time.monotonic()
        omar.press(f"/deployments/{deployment}/roll-back/", reason=why, to=wanted)
        answering = asyncio.run(_until_served(story, desk, wanted, next(fresh)))
        seconds = time.monotonic() - pressed
        if wanted == old:
            story.report["rollback_seconds"] = round(seconds, 3)
        story.say(f"{answering} answers {seconds:.2f} s after the button")


def _proof(story: Story, desk: Project) -> None:
    story.chapter(6, "Proof: why does this version answer, and has anybody touched the record?")
    for line in manage("explain", ALIAS, "--project", desk.name).rstrip().splitlines():
        story.say(line)
    whole = last_json(manage("audit_verify", "--json"))
    story.say(f"ledger: {whole['events']} events, {'intact' if whole['ok'] else 'NOT INTACT'}")
    with tamper.one_byte(
        story.env.database_url, desk.get("promotions", limit=1)["items"][0]["id"]
    ) as event_id:
        found = last_json(manage("audit_verify", "--json", check=False))
    caught = not found["ok"] and str(event_id) in json.dumps(found["problems"])
    story.say(
        f"one byte changed behind the product's back: {'caught' if caught else 'MISSED'}, event {event_id}"
    )
    restored = last_json(manage("audit_verify", "--json"))
    story.report["audit"] = {
        "events": restored["events"],
        "verified": whole["ok"] and restored["ok"],
        "tamper_detected": caught,
    }


async def _until_served(story: Story, desk: Project, version: str, task_id: str) -> str:
    """Open runs until the alias answers with `version`; return it. Raises TimeoutError after 20 s."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        answered = await agent.first_answer(
            task_id, base_url=desk.base_url, api_key=desk.api_key, model=ALIAS
        )
        story.sent += 1
        if answered == version:
            return answered
    raise TimeoutError(f"{version} did not answer within 20 s")


def _work(story: Story, desk: Project, tasks: list[str], title: str) -> list[agent.Worked]:
    with story.progress(title, len(tasks)) as step:
        worked = asyncio.run(
            agent.work(
                tasks, base_url=desk.base_url, api_key=desk.api_key, model=ALIAS, at_once=AT_ONCE,
                on_run=lambda _: step(),
            )
        )  # fmt: skip
    story.sent += sum(len(run.versions) for run in worked)
    return worked


def _lost(story: Story, *projects: Project) -> int:
    """Calls that were answered and stand in no project, once ingest has caught up."""

    def stored() -> int:
        return sum(int(project.get("summary")["calls"]) for project in projects)

    with suppress(TimeoutError):  # the difference is the finding
        wait_for("every call", lambda: stored() == story.sent, timeout_s=15)
    return story.sent - stored()


def _success(worked: list[agent.Worked]) -> float:
    return round(statistics.fmean(run.resolved for run in worked), 4)
