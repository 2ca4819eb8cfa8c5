"""The environments by name: the one list to add a new environment to."""

from __future__ import annotations

from learning.environments import support_desk
from learning.environments.base import Environment

_ENVIRONMENTS = {environment.name: environment for environment in (support_desk.ENVIRONMENT,)}


class UnknownEnvironment(KeyError):
    """No environment of that name."""

    def __str__(self) -> str:
        return f"unknown environment {self.args[0]!r}; known: {', '.join(sorted(_ENVIRONMENTS))}"


def get_environment(name: str) -> Environment:
    """The environment of that name.

    Raises:
        UnknownEnvironment: there is none.
    """
    try:
        return _ENVIRONMENTS[name]
    except KeyError:
        raise UnknownEnvironment(name) from None


def environment_names() -> list[str]:
    """All names, sorted."""
    return sorted(_ENVIRONMENTS)
