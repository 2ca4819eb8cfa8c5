"""What every test shares: embedded servers for those that use the database, and nothing for those that do not."""

from collections.abc import Iterator

import hypothesis
import pytest
from django.conf import settings
from django.db import connection
from pytest_django import DjangoDbBlocker

from config import embedded

# No example may fail because the machine is busy: time is the business of `make bench`.
hypothesis.settings.register_profile("ratchet", deadline=None)
hypothesis.settings.load_profile("ratchet")


@pytest.fixture(scope="session")
def servers() -> Iterator[None]:
    """PostgreSQL and Redis of this home, started when they do not run and left as they were found."""
    started = embedded.start(settings.ENVIRONMENT)
    yield
    embedded.stop(settings.ENVIRONMENT, servers=started)


@pytest.fixture(scope="session")
def django_db_modify_db_settings(servers: None) -> None:
    """pytest-django asks for this before it makes the test database."""


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> None:
    """Tests with `transaction=True` empty all tables with TRUNCATE, which the ledger refuses; its other guards stay."""
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        for table in ("audit_event", "audit_leaf", "audit_ledgercheckpoint"):
            cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER {table}_no_truncate")
