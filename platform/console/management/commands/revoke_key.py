"""`manage.py revoke_key PREFIX`: stop an API key; gateways hear of it at once."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts import services
from accounts.models import ApiKey
from console.management.arguments import OPERATOR, add_project, project_of, say
from kernel import clock


class Command(BaseCommand):
    help = "Stop an API key, named by its first ten characters (rk_ and seven more)."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("prefix")
        add_project(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        keys = list(ApiKey.objects.filter(project=project, prefix=options["prefix"][:10]))
        if len(keys) != 1:
            raise CommandError(f"PREFIX: {len(keys)} keys of {project} begin with {options['prefix'][:10]!r}")
        try:
            key = services.revoke_api_key(key=keys[0], actor=OPERATOR, now=clock.now())
        except services.KeyRevoked as error:
            raise CommandError(f"PREFIX: {error}") from None
        say(self, {"key": key.pk, "revoked_at": key.revoked_at})
