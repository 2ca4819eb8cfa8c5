"""`manage.py set_metric NAME KIND`: say what a name of signals means in a project, and which values fit."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import add_author, add_project, author_of, project_of, say
from kernel import clock
from telemetry.declarations import InvalidMetric, declare, told
from telemetry.metrics import Better, Kind, Level, Metric

ARGUMENTS = {
    "name": "NAME",
    "kind": "KIND",
    "level": "--level",
    "better": "--better",
    "minimum": "--min",
    "maximum": "--max",
    "labels": "--labels",
    "window_s": "--window",
    "description": "--description",
}


class Command(BaseCommand):
    help = (
        "Declare a metric, or change the window and description of one. Signals that are here already and do not fit"
        " are marked and count no more. Gateways follow within a second."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="as feedback calls it, e.g. resolved")
        parser.add_argument("kind", choices=list(Kind))
        parser.add_argument("--level", choices=list(Level), default=Level.RUN, help="what a value is about")
        parser.add_argument(
            "--better", choices=list(Better), default=Better.NEITHER, help="which way is good"
        )
        parser.add_argument("--min", type=float, dest="minimum", help="of a number")
        parser.add_argument("--max", type=float, dest="maximum", help="of a number")
        parser.add_argument("--labels", default="", help="of a label, separated by commas")
        parser.add_argument(
            "--window",
            type=int,
            default=0,
            metavar="SECONDS",
            help="for so long after a run's latest call a value may still change; default: it is final at once",
        )
        parser.add_argument("--description", default="", help="for people")
        add_project(parser)
        add_author(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        metric = Metric(
            name=options["name"],
            kind=Kind(options["kind"]),
            level=Level(options["level"]),
            better=Better(options["better"]),
            minimum=options["minimum"],
            maximum=options["maximum"],
            labels=tuple(label.strip() for label in options["labels"].split(",") if label.strip()),
            window_s=options["window"],
            description=options["description"],
        )
        try:
            declare(
                project=project,
                metric=metric,
                actor=author_of(project, options["user"]),
                reason=options["reason"],
                now=clock.now(),
            )
        except InvalidMetric as error:
            field, _, problem = str(error).partition(": ")
            raise CommandError(f"{ARGUMENTS[field]}: {problem}") from None
        say(self, {"project": project, **told(metric)})
