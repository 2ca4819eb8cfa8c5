"""`manage.py ingest`: the process that moves captured calls from the spool into PostgreSQL, until SIGTERM."""

import gc
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
        # What is loaded by now stays, and what a chunk holds lives until its commit: neither is worth looking for
        # garbage in again and again, which takes a tenth of the time otherwise.
        gc.freeze()
        gc.set_threshold(100_000)

        def end(number: int, frame: FrameType | None) -> None:
            stop.set()

        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)
        ingest.run_forever(stop)
