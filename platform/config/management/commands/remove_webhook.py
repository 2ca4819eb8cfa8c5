"""`manage.py remove_webhook NAME`: take no signals under its address any more."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import add_author, add_project, author_of, project_of, say
from gateway.models import Webhook
from gateway.services import remove_webhook
from kernel import clock


class Command(BaseCommand):
    help = "Remove a webhook of a project. Signals that came by it stay."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        add_project(parser)
        add_author(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        webhook = Webhook.objects.filter(project=project, name=options["name"]).first()
        if webhook is None:
            raise CommandError(f"NAME: {project} has no webhook {options['name']!r}")
        actor = author_of(project, options["user"])
        remove_webhook(webhook=webhook, actor=actor, reason=options["reason"], now=clock.now())
        say(self, {"removed": webhook.pk, "was": webhook.name})
