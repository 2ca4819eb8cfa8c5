"""`manage.py deploy ALIAS --base PATH`: let an alias answer with a base model that a policy node serves."""

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from console.management.arguments import OPERATOR, add_project, project_of, say
from kernel import clock
from learning.artifacts import UnsafeArtifact, check_base_model, directory_digest
from release import registry, rollout, serving
from release.moves import Refused


class Command(BaseCommand):
    help = (
        "Register a base model as version 1 of an alias, the node that serves it, and let the alias answer."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("alias", help="what clients put in `model`, e.g. support-desk")
        add_project(parser)
        parser.add_argument(
            "--base", required=True, type=Path, metavar="PATH", help="folder of the base model"
        )
        parser.add_argument(
            "--served-model-name", default="", help="the node's name for it; default: the folder's"
        )
        parser.add_argument(
            "--node", default="", metavar="URL", help="the policy node; default: the embedded one"
        )

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        now, project, base = clock.now(), project_of(options["project"]), options["base"].resolve()
        try:
            check_base_model(base)
            sha256 = directory_digest(base)
            version = registry.register_base(
                project=project,
                line=options["alias"],
                base_model=str(base),
                base_sha256=sha256,
                served_name=options["served_model_name"],
                actor=OPERATOR,
                now=now,
            )
            deployment = rollout.create_deployment(
                project=project, alias=options["alias"], champion=version, actor=OPERATOR, now=now
            )
        except UnsafeArtifact as error:
            raise CommandError(f"--base: {error}") from None
        except (registry.RegistrationRefused, Refused) as error:
            raise CommandError(f"ALIAS: {error}") from None
        try:
            node = serving.register_node(
                name="" if options["node"] else serving.EMBEDDED,
                base_url=options["node"] or settings.ENVIRONMENT.policy_url,
                base_model=str(base),
                base_sha256=sha256,
            )
        except ValueError as error:
            raise CommandError(f"--node: {error}") from None
        say(
            self,
            {
                "deployment": deployment.pk,
                "alias": deployment.alias,
                "champion": version.name,
                "base_sha256": sha256,
                "node": node.base_url,
            },
        )
