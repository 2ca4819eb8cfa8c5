"""`manage.py ingest`: the process that moves captured calls from the spool into PostgreSQL, until SIGTERM."""

import signal
import threading
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand

from telemetry import ingest


class Command(BaseCommand):
    help = "Move captured calls from the spool into PostgreSQL until SIGTERM or Ctrl-C."

    def handle(self, *args: Any, **options: Any) -> None:
        stop = threading.Event()

        def end(number: int, frame: FrameType | None) -> None:
            stop.set()

        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)
        ingest.run_forever(stop)
