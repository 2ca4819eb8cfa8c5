"""`manage.py run`: the product in the foreground until Ctrl-C."""

import signal
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from config import bootstrap
from config.embedded import EmbeddedServerError
from config.run import CannotRun, Product
from kernel import clock


class Command(BaseCommand):
    help = "Start PostgreSQL, Redis, gateway, console, workers and policy server; stop them with Ctrl-C."
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        def interrupt(number: int, frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        # Also where the parent ignores them: what was started must not be left behind.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, interrupt)
        product = Product(settings.ENVIRONMENT)
        try:
            product.start(self.stdout.write)
            self.stdout.write("Starting gateway, console, workers and policy server ...")
            product.wait_ready()
            self.stdout.write("\n".join(bootstrap.first_steps(settings.ENVIRONMENT, now=clock.now())))
            self.stdout.flush()
            product.wait()
        except (CannotRun, EmbeddedServerError, PermissionError) as error:
            raise CommandError(str(error), returncode=2) from None
        except KeyboardInterrupt:
            self.stdout.write("\nStopping ...")
        finally:
            product.stop()
