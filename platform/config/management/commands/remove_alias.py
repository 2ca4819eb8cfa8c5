"""`manage.py remove_alias NAME`: let a model name stand for itself again."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import add_author, add_project, author_of, project_of, say
from gateway.models import Alias
from gateway.services import remove_alias
from kernel import clock


class Command(BaseCommand):
    help = "Remove an alias; its name then means a deployment of that name, or the upstreams' own model."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        add_project(parser)
        add_author(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        alias = Alias.objects.filter(project=project, name=options["name"]).first()
        if alias is None:
            raise CommandError(f"NAME: {project} has no alias {options['name']!r}")
        actor = author_of(project, options["user"])
        remove_alias(alias=alias, actor=actor, reason=options["reason"], now=clock.now())
        say(self, {"removed": alias.pk, "name": alias.name})
