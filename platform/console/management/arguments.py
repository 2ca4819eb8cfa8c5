"""What the commands share: naming projects, people and deployments on the command line, and answering in
JSON.

Everything that can be wrong with a name is a CommandError that says which argument and what would be
right."""

import json
import os
from collections.abc import Mapping
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts.models import ApiKey, Organization, Project, User
from accounts.selectors import actor_of, can_administer, role_of
from audit.actions import Actor
from release.models import Deployment, ModelVersion

OPERATOR = Actor.service("command-line")
"""Who acts when a command is not given a person: whoever may run programs on this machine."""


def add_project(parser: CommandParser) -> None:
    parser.add_argument("--project", default="", help="name or id; may be left out when there is only one")


def add_decision(parser: CommandParser) -> None:
    """A deployment, a person and their reason."""
    parser.add_argument("alias", help="the deployment, e.g. support-desk")
    add_project(parser)
    parser.add_argument(
        "--as", dest="user", required=True, metavar="USER", help="who decides: a user name or e-mail"
    )
    parser.add_argument("--reason", required=True, help="why; it goes into the ledger")


def add_author(parser: CommandParser) -> None:
    """Who changes a setting and why; both may be left out."""
    parser.add_argument(
        "--as", dest="user", default="", metavar="USER", help="who decides; default: the command line"
    )
    parser.add_argument("--reason", default="", help="why; it goes into the ledger")


def author_of(project: Project, text: str) -> Actor:
    """The person as actor, if they may change settings of the project's organization; without one, the command
    line."""
    if not text:
        return OPERATOR
    user = user_of(text)
    role = role_of(user, project.organization)
    if not can_administer(role):
        raise CommandError(
            f"--as: {user.username} may not do this in {project.organization}: role {role or 'none'}"
        )
    return actor_of(user, role)


def project_of(text: str) -> Project:
    """The project named or identified by `text`, or the only one there is."""
    projects = Project.objects.select_related("organization")
    try:
        found = list(projects.filter(pk=UUID(text)))
    except ValueError:
        found = list((projects.filter(name=text) if text else projects)[:2])
    if len(found) == 1:
        return found[0]
    if not text:
        raise CommandError(f"--project: say which one; there are {'several' if found else 'none'}")
    raise CommandError(f"--project: {'several projects are' if found else 'no project is'} called {text!r}")


def organization_of(name: str) -> Organization:
    found = Organization.objects.filter(name=name).first()
    if found is None:
        raise CommandError(f"--organization: there is none called {name!r}")
    return found


def user_of(text: str) -> User:
    """The person with this user name or e-mail address."""
    found = (
        User.objects.filter(username=text).first()
        or User.objects.filter(email=text).exclude(email="").first()
    )
    if found is None:
        raise CommandError(f"--as: nobody is called {text!r}")
    return found


def deployment_of(project: Project, alias: str) -> Deployment:
    rows = Deployment.objects.select_related("champion", "canary", "project__organization")
    found = rows.filter(project=project, alias=alias).first()
    if found is None:
        raise CommandError(f"ALIAS: {project} has no deployment {alias!r}")
    return found


def key_of(project: Project, text: str, argument: str) -> ApiKey:
    """The project's key that begins with the first ten characters of `text`."""
    keys = list(ApiKey.objects.filter(project=project, prefix=text[:10]))
    if len(keys) != 1:
        raise CommandError(f"{argument}: {len(keys)} keys of {project} begin with {text[:10]!r}")
    return keys[0]


def version_of(project: Project, alias: str, text: str) -> ModelVersion:
    """A version of the alias' line, as `v2` or `support-desk-v2`."""
    number = text.removeprefix(f"{alias}-").removeprefix("v")
    if number.isdecimal():
        found = ModelVersion.objects.filter(project=project, line=alias, number=int(number)).first()
        if found is not None:
            return found
    raise CommandError(f"version: {project} has no version {text!r} of {alias}")


def secret_from(variable: str, option: str) -> str:
    """A secret from an environment variable, so that it never stands on a command line."""
    value = os.environ.get(variable, "")
    if not value:
        raise CommandError(f"{option}: the environment variable {variable} is not set")
    return value


def say(command: BaseCommand, answer: Mapping[str, object]) -> None:
    """Print one line of JSON."""
    command.stdout.write(json.dumps(answer, default=str))
