#!/usr/bin/env python
"""Django's command line for Ratchet: `python manage.py help` lists the commands."""

import os
import sys

from django.core.management import execute_from_command_line
from django.db import OperationalError

from config import environment

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    try:
        environment.read()
    except ValueError as error:
        sys.exit(f"ratchet: {error}")
    try:
        execute_from_command_line(sys.argv)
    except OperationalError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        sys.exit(
            f"ratchet: PostgreSQL does not answer ({reason}): start Ratchet with `make run`, or set DATABASE_URL"
        )
