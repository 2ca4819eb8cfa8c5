"""`manage.py set_webhook NAME --key PREFIX`: let a business system send signals of a project, signed with a secret."""

import secrets
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import (
    add_author,
    add_project,
    author_of,
    key_of,
    project_of,
    say,
    secret_from,
)
from gateway.models import Webhook
from gateway.services import InvalidWebhook, set_webhook
from gateway.webhooks import PREFIX
from kernel import clock

ARGUMENTS = {"name": "NAME", "api_key": "--key", "secret": "--secret-env"}


class Command(BaseCommand):
    help = "Make a webhook, or change it. A secret that is made here is printed once. Gateways follow within a second."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="of the system that sends, e.g. helpdesk")
        parser.add_argument(
            "--key", required=True, metavar="PREFIX", help="the API key whose signals they are"
        )
        secret = parser.add_mutually_exclusive_group()
        secret.add_argument(
            "--secret-env", metavar="VAR", help="variable with the secret, if the system gives one"
        )
        secret.add_argument(
            "--new-secret", action="store_true", help="make a new one for a webhook that is there"
        )
        add_project(parser)
        add_author(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        secret = made = None
        if options["secret_env"]:
            secret = secret_from(options["secret_env"], "--secret-env")
        elif (
            options["new_secret"]
            or not Webhook.objects.filter(project=project, name=options["name"]).exists()
        ):
            secret = made = f"whsec_{secrets.token_urlsafe(32)}"
        try:
            webhook = set_webhook(
                project=project,
                name=options["name"],
                api_key=key_of(project, options["key"], "--key"),
                secret=secret,
                actor=author_of(project, options["user"]),
                reason=options["reason"],
                now=clock.now(),
            )
        except InvalidWebhook as error:
            field, _, problem = str(error).partition(": ")
            raise CommandError(f"{ARGUMENTS[field]}: {problem}") from None
        answer = {"webhook": webhook.pk, "path": f"{PREFIX}{webhook.address}"}
        say(self, answer | ({"secret": made} if made else {}))
