"""`manage.py revoke_key PREFIX`: stop an API key; gateways hear of it at once."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts import services
from console.management.arguments import OPERATOR, add_project, key_of, project_of, say
from kernel import clock


class Command(BaseCommand):
    help = "Stop an API key, named by its first ten characters (rk_ and seven more)."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("prefix")
        add_project(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        key = key_of(project, options["prefix"], "PREFIX")
        try:
            key = services.revoke_api_key(key=key, actor=OPERATOR, now=clock.now())
        except services.KeyRevoked as error:
            raise CommandError(f"PREFIX: {error}") from None
        say(self, {"key": key.pk, "revoked_at": key.revoked_at})
