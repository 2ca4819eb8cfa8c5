"""Own terms: installed by entry point, held to the digest of their code, refused with the reason."""

import hashlib
import sys

import pytest

from learning.rewards import own
from learning.rewards.facts import Facts
from learning.rewards.fields import InvalidRewardSpec
from learning.rewards.scoring import score
from learning.rewards.spec import RewardSpec
from learning.rewards.steps import StepFacts

SOURCE = """
def brevity(facts, *, most):
    return max(0.0, 1 - len(facts.steps) / most)

def silent(facts):
    return None

def each(facts):
    return [float(step.tool_calls) for step in facts.steps]

def short(facts):
    return [1.0]

def words(facts):
    return "good"
"""
NAMES = ("brevity", "silent", "each", "short", "words")
STEPS = [StepFacts(tool_calls=2), StepFacts()]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A distribution as pip would leave it: a module, and metadata that names its entry points."""
    module = tmp_path / "desk_terms.py"
    module.write_text(SOURCE)
    info = tmp_path / "desk_terms-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: desk-terms\nVersion: 1.0\n")
    entries = "".join(f"{name} = desk_terms:{name}\n" for name in NAMES)
    (info / "entry_points.txt").write_text(f"[ratchet.reward_terms]\nnowhere = no_such_module:x\n{entries}")
    monkeypatch.syspath_prepend(str(tmp_path))
    own.load.cache_clear()
    yield module
    sys.modules.pop("desk_terms", None)
    own.load.cache_clear()


def spec(name, *, kind="outcome", sha256=None, missing="none", **options):
    term = {"own": name, "weight": 2.0, "missing": missing, "options": options}
    term["sha256"] = sha256 or hashlib.sha256(SOURCE.encode()).hexdigest()
    plain = {"outcome": {"resolved": {"signal": "resolved", "weight": 1.0, "missing": "skip"}}}
    return RewardSpec.parse({"schema": 2, "name": "own", **plain, kind: {"mine": term}})


def test_an_own_term_scores_with_its_options(package):
    assert own.digest("brevity") == hashlib.sha256(SOURCE.encode()).hexdigest()
    brevity = spec("brevity", most=4)
    brevity.check_own_terms()
    assert score(brevity, Facts.of({}, STEPS)).total == 1.0
    assert RewardSpec.parse(brevity.to_dict()) == brevity


def test_an_own_term_may_speak_of_each_step_or_not_know(package):
    result = score(spec("each", kind="step"), Facts.of({}, STEPS))
    assert [step.step for step in result.steps] == [4.0, 0.0]
    silent = score(spec("silent"), Facts.of({}, STEPS))
    assert (silent.total, silent.missing) == (None, ("own:silent",))


@pytest.mark.parametrize(
    ("name", "message"),
    [("short", "answered 1 numbers for 2 steps"), ("words", "must answer a finite number or None")],
)
def test_answers_that_are_no_numbers_are_refused(package, name, message):
    with pytest.raises(own.OwnTermRefused, match=message):
        score(spec(name), Facts.of({}, STEPS))


def test_code_that_is_not_the_specs_is_refused_and_not_run(package):
    changed = SOURCE + "\nraise RuntimeError('this code ran')\n"
    package.write_text(changed)
    brevity = spec("brevity", most=4)
    with pytest.raises(
        InvalidRewardSpec, match=r"^outcome\.mine\.sha256: own term 'brevity': the spec names code"
    ):
        brevity.check_own_terms()
    with pytest.raises(own.OwnTermRefused, match=hashlib.sha256(changed.encode()).hexdigest()):
        score(brevity, Facts.of({}, STEPS))


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent", "is not installed; installed: brevity, each"), ("nowhere", "no Python source")],
)
def test_terms_that_are_not_there_are_refused(package, name, message):
    with pytest.raises(InvalidRewardSpec, match=message):
        spec(name).check_own_terms()
