"""`manage.py stop_servers`: stop this home's embedded PostgreSQL and Redis, if they run; data stays."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from config import embedded


class Command(BaseCommand):
    help = "Stop this home's embedded PostgreSQL and Redis."
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        embedded.stop(settings.ENVIRONMENT)
