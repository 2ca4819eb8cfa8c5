"""`manage.py remove_upstream NAME`: forget a provider of a project and its credential."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import add_author, add_project, author_of, project_of, say
from gateway.models import Upstream
from gateway.services import remove_upstream
from gateway.upstream_settings import InvalidUpstream
from kernel import clock


class Command(BaseCommand):
    help = "Remove an upstream that no alias points to. To pause one, use `set_upstream NAME --no-enabled`."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        add_project(parser)
        add_author(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        upstream = Upstream.objects.filter(project=project, name=options["name"]).first()
        if upstream is None:
            raise CommandError(f"NAME: {project} has no upstream {options['name']!r}")
        actor = author_of(project, options["user"])
        try:
            remove_upstream(upstream=upstream, actor=actor, reason=options["reason"], now=clock.now())
        except InvalidUpstream as error:
            raise CommandError(str(error).replace("name: ", "NAME: ", 1)) from None
        say(self, {"removed": upstream.pk, "name": upstream.name})
