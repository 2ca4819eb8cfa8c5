"""The Celery app: configuration comes from Django's settings, tasks from `workers.tasks`, times from `workers.schedule`."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
app = Celery("ratchet")
app.config_from_object("django.conf:settings", namespace="CELERY")
