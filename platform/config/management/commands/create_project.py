"""`manage.py create_project NAME`: a project with its first API key, and the provider it relays to."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from accounts import services
from accounts.models import Organization, Project
from console.management.arguments import OPERATOR, say, secret_from
from gateway.services import set_upstream
from kernel import clock

PROVIDER = "provider"
"""The name of a project's first upstream; `set_upstream` adds others and changes this one."""


class Command(BaseCommand):
    help = "Make a project; prints its id, an API key and the base URL for clients, as one line of JSON."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--organization", default="Default", help="made when there is none of that name")
        parser.add_argument("--upstream", default="", help="the provider's base URL, ending in /v1")
        parser.add_argument(
            "--upstream-key-env", default="", metavar="VAR", help="variable with the provider's key"
        )

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        now, name = clock.now(), options["name"]
        credential = ""
        if options["upstream_key_env"]:
            credential = secret_from(options["upstream_key_env"], "--upstream-key-env")
        organization = Organization.objects.filter(name=options["organization"]).first()
        if organization is None:
            organization = services.create_organization(name=options["organization"], actor=OPERATOR, now=now)
        if Project.objects.filter(organization=organization, name=name).exists():
            raise CommandError(f"NAME: {organization} has a project {name!r}")
        project = services.create_project(organization=organization, name=name, actor=OPERATOR, now=now)
        _, key = services.create_api_key(project=project, name="first key", actor=OPERATOR, now=now)
        if options["upstream"]:
            try:
                set_upstream(
                    project=project,
                    name=PROVIDER,
                    base_url=options["upstream"],
                    credential=credential,
                    actor=OPERATOR,
                    now=now,
                )
            except ValueError as error:
                raise CommandError(f"--upstream: {str(error).removeprefix('base_url: ')}") from None
        base_url = f"{settings.ENVIRONMENT.gateway_url}/v1"
        say(self, {"project": project.pk, "api_key": key, "base_url": base_url})
