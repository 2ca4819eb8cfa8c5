"""The repository's own promises, held against its files: words, layout, pins, nothing that phones home."""

import ast
import re
from pathlib import Path

import pytest

from audit.actions import Action
from config import run
from config.environment import read
from workers import schedule, tasks

ROOT = Path(__file__).resolve().parents[2]
SOURCE = [
    path
    for folder in ("platform", "telemetry", "audit", "workers")
    for path in (ROOT / folder).rglob("*.py")
    if "migrations" not in path.parts
]


def test_every_package_init_is_empty() -> None:
    assert [str(p) for p in SOURCE if p.name == "__init__.py" and p.read_text().strip()] == []


def test_every_module_says_what_it_owns() -> None:
    silent = [
        str(p.relative_to(ROOT))
        for p in SOURCE
        if p.name != "__init__.py" and not p.read_text().startswith(('"""', 'r"""'))
    ]
    assert silent == []


def test_every_audit_action_is_documented() -> None:
    documented = set(
        re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \|", (ROOT / "docs/audit-format.md").read_text(), re.MULTILINE)
    )
    assert {action.value for action in Action} == documented


def test_the_glossary_names_every_table() -> None:
    words = (ROOT / "docs/glossary.md").read_text().lower()
    for word in (
        "run",
        "step",
        "call",
        "signal",
        "episode",
        "training job",
        "model version",
        "deployment",
        "promotion",
    ):
        assert re.search(rf"^\| [^|]*\b{word}\b", words, re.MULTILINE), word


def test_every_requirement_is_pinned() -> None:
    lines = [
        line
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []


def test_every_scheduled_task_exists() -> None:
    assert {entry["task"] for entry in schedule.app.conf.beat_schedule.values()} <= set(tasks.app.tasks)


@pytest.mark.parametrize("program", run.programs(read({})), ids=lambda program: str(program.name))
def test_no_process_listens_beyond_loopback(program: run.Program) -> None:
    command = " ".join(program.arguments)
    assert "0.0.0.0" not in command
    assert "--port" not in command or "--host 127.0.0.1" in command


@pytest.mark.parametrize("path", SOURCE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pickle_and_no_foreign_host(path: Path) -> None:
    """Docstrings may name sources; code may name no host but this machine and examples."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]
    hosts = {host for text in texts for host in re.findall(r"https?://([a-z0-9.-]+\.[a-z]{2,})", text)}
    assert hosts <= {"example.com", "opentelemetry.io"}  # the second names a schema, nothing is fetched
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not imported & {"pickle", "shelve", "marshal", "dill", "joblib"}
