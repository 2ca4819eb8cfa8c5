"""The Celery app as `celery -A workers.app` finds it: `kernel.queueing`'s, with this package's tasks and times."""

import os

from kernel.queueing import app

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
app.conf.imports = ("workers.tasks", "workers.schedule")
