"""`manage.py set_upstream NAME --url URL`: make or change a provider of a project."""

import argparse
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import add_author, add_project, author_of, project_of, say, secret_from
from gateway.models import Auth, Upstream
from gateway.services import set_upstream
from gateway.upstream_settings import InvalidUpstream
from kernel import clock

OPTIONS = {
    "base_url": "--url",
    "auth": "--auth",
    "priority": "--priority",
    "serves": "--serves",
    "connect_timeout_s": "--connect-timeout",
    "first_byte_timeout_s": "--first-byte-timeout",
    "idle_timeout_s": "--idle-timeout",
    "max_retries": "--max-retries",
    "asks_usage": "--asks-usage",
    "is_enabled": "--enabled",
    "prices": "--price",
    "credential": "--credential-env",
    "name": "NAME",
}
"""Field of an upstream -> where it stands on the command line."""


class Command(BaseCommand):
    help = (
        "Make an upstream, or change it: what is not given stays as it is. Gateways follow within a second."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="for people and for aliases, e.g. openai")
        add_project(parser)
        parser.add_argument("--url", dest="base_url", help="the provider's base URL, usually ending in /v1")
        credential = parser.add_mutually_exclusive_group()
        credential.add_argument("--credential-env", metavar="VAR", help="variable with the provider's key")
        credential.add_argument("--no-credential", action="store_true", help="it needs no key")
        parser.add_argument("--auth", choices=Auth.values, help="header of the key; default: bearer")
        parser.add_argument("--priority", type=int, help="lower ones are tried first; default: 0")
        parser.add_argument("--serves", type=_names, metavar="DIALECT,...", help="or `all`, the default")
        for name in ("connect", "first-byte", "idle"):
            field = f"{name.replace('-', '_')}_timeout_s"
            parser.add_argument(
                f"--{name}-timeout", dest=field, type=_seconds, metavar="SECONDS", help="or `default`"
            )
        parser.add_argument("--max-retries", type=int, help="at this upstream, before the next is tried")
        parser.add_argument(
            "--asks-usage",
            action=argparse.BooleanOptionalAction,
            help="it knows stream_options.include_usage",
        )
        parser.add_argument(
            "--enabled", dest="is_enabled", action=argparse.BooleanOptionalAction, help="whether it is called"
        )
        parser.add_argument(
            "--price",
            dest="prices",
            action="append",
            type=_price,
            metavar="MODEL=INPUT,OUTPUT[,CACHED]",
            help="US dollars per million tokens; once for each model; MODEL=none forgets one",
        )
        add_author(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        credential: str | None = "" if options["no_credential"] else None
        if options["credential_env"]:
            credential = secret_from(options["credential_env"], "--credential-env")
        fields = {field: options[field] for field in OPTIONS if options.get(field) is not None}
        del fields["name"]
        fields |= {field: None for field, value in fields.items() if value == "default"}
        if "prices" in fields:
            row = Upstream.objects.filter(project=project, name=options["name"]).first()
            prices = {**(row.prices if row else {}), **dict(fields["prices"])}
            fields["prices"] = {model: price for model, price in prices.items() if price is not None}
        try:
            upstream = set_upstream(
                project=project,
                name=options["name"],
                credential=credential,
                actor=author_of(project, options["user"]),
                reason=options["reason"],
                now=clock.now(),
                **fields,
            )
        except InvalidUpstream as error:
            field, _, problem = str(error).partition(": ")
            top, _, inner = field.partition(".")
            where = OPTIONS.get(top, top) + (f" {inner}" if inner else "")
            raise CommandError(f"{where}: {problem}") from None
        say(self, {"upstream": upstream.pk, "name": upstream.name, "base_url": upstream.base_url})


def _names(text: str) -> list[str]:
    return [] if text == "all" else text.split(",")


def _seconds(text: str) -> float | str:
    try:
        return text if text == "default" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither seconds nor `default`") from None


def _price(text: str) -> tuple[str, dict[str, float] | None]:
    model, _, numbers = text.rpartition("=")
    if model and numbers == "none":
        return model, None
    try:
        amounts = [float(number) for number in numbers.split(",")]
    except ValueError:
        amounts = []
    if not model or len(amounts) not in {2, 3}:
        raise argparse.ArgumentTypeError(f"{text!r} is not MODEL=INPUT,OUTPUT[,CACHED] in US dollars")
    return model, dict(zip(("input", "output", "cached_input"), amounts, strict=False))
