"""The same scene that the browser tests look at, and people who are signed in."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from django.test import Client

from accounts.models import User
from tests.browser.scene import Scene, build


@pytest.fixture
def scene(db: None) -> Scene:
    return build(datetime.now(UTC), tickets=8, canary_runs=8)


@pytest.fixture
def signed_in() -> Callable[[User], Client]:
    """A client whose POSTs are checked for CSRF tokens as a browser's are."""

    def sign_in(user: User) -> Client:
        client = Client()
        client.force_login(user)
        return client

    return sign_in
