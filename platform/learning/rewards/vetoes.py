"""Vetoes: a verified failure beats every term and every judge.

A veto fires only on a value that somebody has said; what nobody has said vetoes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from learning.rewards.fields import InvalidRewardSpec, choice, known, mapping, number, required, text

TESTS = ("equals", "at_least", "at_most")


@dataclass(frozen=True, kw_only=True)
class Veto:
    """The reward of every episode whose signal passes the test, whatever else is known of it."""

    name: str
    signal: str
    test: str
    bound: bool | float | str
    reward: float
    because: str
    waits: bool = True
    """Whether a value that may still change is waited for."""

    @classmethod
    def parse(cls, name: str, document: object, path: str) -> Veto:
        """One entry of the spec's section `veto`. Raises InvalidRewardSpec."""
        veto = mapping(document, path)
        known(veto, path, {"when", "reward", "because", "not_final"})
        when = mapping(required(veto, "when", path, "{signal: NAME, equals: VALUE}"), f"{path}.when")
        known(when, f"{path}.when", {"signal", *TESTS})
        tests = [test for test in TESTS if test in when]
        if len(tests) != 1:
            raise InvalidRewardSpec(f"{path}.when: must hold exactly one of {', '.join(TESTS)}")
        return cls(
            name=name,
            signal=text(
                required(when, "signal", f"{path}.when", "the signal that is tested"), f"{path}.when.signal"
            ),
            test=tests[0],
            bound=_bound(tests[0], when[tests[0]], f"{path}.when.{tests[0]}"),
            reward=number(required(veto, "reward", path, "the reward instead"), f"{path}.reward"),
            because=text(required(veto, "because", path, "say why this decides alone"), f"{path}.because"),
            waits=choice(veto.get("not_final", "wait"), f"{path}.not_final", ("wait", "use")) == "wait",
        )

    def to_json(self) -> dict[str, Any]:
        """The document again."""
        return {
            "when": {"signal": self.signal, self.test: self.bound},
            "reward": self.reward,
            "because": self.because,
            "not_final": "wait" if self.waits else "use",
        }

    def fires(self, value: object) -> bool:
        """Whether this value of the signal vetoes."""
        if self.test == "equals":
            # True is no 1 here: a count of one failure is not the statement that there was a failure.
            return isinstance(value, bool) == isinstance(self.bound, bool) and value == self.bound
        if isinstance(value, bool) or not isinstance(value, (int, float)) or isinstance(self.bound, str):
            return False
        return value >= self.bound if self.test == "at_least" else value <= self.bound


def _bound(test: str, value: object, path: str) -> bool | float | str:
    if test == "equals" and isinstance(value, (bool, str)):
        return value
    return number(value, path, least=-1e12, most=1e12)
