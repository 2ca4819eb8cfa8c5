"""`manage.py demo`: start the product, tell the story, stop the product (or, with --hold, leave it up until Ctrl-C)."""

import secrets
import signal
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from config.embedded import EmbeddedServerError
from config.run import CannotRun, Product
from demo import story
from demo.doors import DoorClosed


class Command(BaseCommand):
    help = "Production traffic turns into a better model that a person approved and the ledger explains."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--hold", action="store_true", help="leave the approval to you, in the browser")

    def handle(self, *args: Any, hold: bool, **options: Any) -> None:
        def interrupt(number: int, frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        # Also where the parent ignores them: what was started must not be left behind.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, interrupt)
        product = Product(settings.ENVIRONMENT)
        try:
            self.stdout.write("Starting Ratchet ...")
            product.start(self.stdout.write)
            product.wait_ready()
            story.tell(settings.ENVIRONMENT, hold=hold, password=secrets.token_urlsafe(12))
            if hold:
                self.stdout.write(f"The console stays up at {settings.ENVIRONMENT.console_url} until Ctrl-C.")
                self.stdout.flush()
                product.wait()
        except (
            CannotRun,
            EmbeddedServerError,
            DoorClosed,
            PermissionError,
            RuntimeError,
            TimeoutError,
        ) as error:
            raise CommandError(f"{error}\nThe processes' logs are in {product.logs}", returncode=2) from None
        except KeyboardInterrupt:
            self.stdout.write("\nStopping ...")
        finally:
            product.stop()
