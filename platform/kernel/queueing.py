"""Hints to workers: a task's name and queue, the Celery app that carries it, and the only function that sends one.

Rows are the truth and messages are hints: a lost, doubled or late message changes nothing, because a task
looks its row up and a sweep sends again what is due. So a broker that is down is noted and never raised."""

import logging
from dataclasses import dataclass

from celery import Celery
from django.db import transaction
from kombu.exceptions import OperationalError

app = Celery("ratchet")
app.config_from_object("django.conf:settings", namespace="CELERY")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskRef:
    """A task by name, so that lower layers can ask for work that higher layers define."""

    name: str
    queue: str = "default"


def enqueue_on_commit(task: TaskRef, **ids: str) -> None:
    """Send the hint once the surrounding transaction has committed; arguments are ids only."""
    transaction.on_commit(lambda: send(task, **ids))


def send(task: TaskRef, **ids: str) -> None:
    """Send the hint at once. A broker that is away costs a log line: the sweep will find the row."""
    try:
        app.send_task(task.name, kwargs=ids, queue=task.queue, retry=False, ignore_result=True)
    except (OperationalError, OSError) as error:
        log.warning("hint %s not sent (%s); the sweep will", task.name, type(error).__name__)
