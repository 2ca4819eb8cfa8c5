"""`manage.py audit_verify`: check the whole ledger. Exit status 0 when it holds, 1 when somebody touched
it."""

import sys
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit import checkpoints
from audit.verify import Finding, verify
from console.management.arguments import say


class Command(BaseCommand):
    help = "Check every event, leaf and signed checkpoint; names the tampering and the first bad event."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="answer in one line of JSON")
        parser.add_argument(
            "--checkpoint", action="append", default=[], type=Path, metavar="FILE",
            help="a signed checkpoint that was kept elsewhere; may be given again",
        )  # fmt: skip

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            kept = [path.read_text() for path in options["checkpoint"]]
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"--checkpoint: {error}") from None
        report = verify(public=checkpoints.public_key(settings.KEYRING.ledger_seed), kept=kept)
        if options["json"]:
            say(
                self,
                {
                    "ok": report.holds,
                    "organizations": report.organizations,
                    "events": report.events,
                    "unsealed": report.unsealed,
                    "checkpoints": report.checkpoints,
                    "problems": [_problem(finding) for finding in report.findings],
                },
            )
        else:
            for finding in report.findings:
                self.stdout.write(finding.sentence())
            verdict = "The ledger holds" if report.holds else "THE LEDGER WAS TAMPERED WITH"
            self.stdout.write(
                f"{verdict}: {report.events} events, {report.checkpoints} signed checkpoints, "
                f"{report.organizations} organizations, {report.unsealed} events not sealed yet."
            )
        if not report.holds:
            sys.exit(1)


def _problem(finding: Finding) -> dict[str, object]:
    return {
        "tampering": finding.tampering.value,
        "organization": finding.organization_id,
        "seq": finding.seq,
        "event": finding.event_id,
        "action": finding.action,
        "detail": finding.detail,
    }
