"""`manage.py train ALIAS`: ask for a training job that tries to make the alias' next version."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import IntegrityError

from accounts.selectors import actor_of, can_operate, role_of
from console.management.arguments import add_project, deployment_of, project_of, say, user_of
from kernel import clock
from learning import training
from learning.environments.registry import UnknownEnvironment
from learning.models import DatasetSnapshot


class Command(BaseCommand):
    help = "Ask for a training job on a frozen snapshot; a trainer takes it up."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("alias")
        add_project(parser)
        parser.add_argument("--snapshot", required=True, metavar="NAME")
        parser.add_argument("--environment", required=True)
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument(
            "--config", default="{}", metavar="JSON", help="settings of the job, as a JSON object"
        )
        parser.add_argument("--as", dest="user", required=True, metavar="USER", help="who asks")

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        deployment = deployment_of(project, options["alias"])
        user = user_of(options["user"])
        role = role_of(user, project.organization)
        if not can_operate(role):
            raise CommandError(
                f"--as: {user.username} may not train in {project.organization}: role {role or 'none'}"
            )
        snapshot = DatasetSnapshot.objects.filter(project=project, name=options["snapshot"]).first()
        if snapshot is None:
            raise CommandError(f"--snapshot: {project} has none called {options['snapshot']!r}")
        try:
            config = json.loads(options["config"])
        except ValueError as error:
            raise CommandError(f"--config: {error}") from None
        if not isinstance(config, dict):
            raise CommandError("--config: a JSON object is expected")
        try:
            job = training.request_job(
                project=project,
                snapshot=snapshot,
                model_line=deployment.alias,
                base_model=deployment.champion.base_model,
                base_sha256=deployment.champion.base_sha256,
                environment=options["environment"],
                config=config,
                seed=options["seed"],
                actor=actor_of(user, role),
                now=clock.now(),
            )
        except UnknownEnvironment as error:
            raise CommandError(f"--environment: {error}") from None
        except training.JobRefused as error:
            raise CommandError(f"--snapshot: {error}") from None
        except IntegrityError:
            raise CommandError(f"ALIAS: {deployment} has an open training job") from None
        say(self, {"job": job.pk, "algorithm": job.algorithm, "reasons": job.plan["reasons"]})
