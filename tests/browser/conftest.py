"""A browser at the console: Chromium driven by Playwright, the live server, and a scene in a real
database."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from django.conf import settings
from playwright.sync_api import Browser, Page, sync_playwright
from pytest_django.live_server_helper import LiveServer

from tests.browser.scene import PASSWORD, Scene, build

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser a module, not a session: Playwright's loop counts as running in this thread for as long as it lives,
    and no other test could call `asyncio.run` then."""
    if not CHROMIUM.exists():
        pytest.skip("no /usr/bin/chromium: `apt-get install chromium` makes the browser tests run")
    # Playwright's loop lives in this thread: Django must be told that tests alone call the ORM.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()
    del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


@pytest.fixture
def scene(transactional_db: None) -> Scene:
    return build(datetime.now(UTC))


class Visitor:
    """A person at a browser. Every page they open is checked for requests that leave the machine."""

    def __init__(self, page: Page, origin: str, screenshots: Path) -> None:
        self.page, self.origin, self._screenshots = page, origin, screenshots
        self.foreign: list[str] = []
        self.errors: list[str] = []
        page.on("request", self._note)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def sign_in(self, name: str) -> None:
        self.open("/login/")
        self.page.get_by_label("Username").fill(name)
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_role("button", name="Log in").click()
        self.page.wait_for_url(f"{self.origin}/")

    def open(self, path: str) -> None:
        self.page.goto(self.origin + path)

    def shoot(self, name: str, *, whole: bool = True) -> None:
        """Write a picture of the page, the whole of it or what the window shows, below the home's
        screenshots."""
        self.page.screenshot(path=self._screenshots / f"{name}.png", full_page=whole)

    def _note(self, request: object) -> None:
        url = str(getattr(request, "url", ""))
        if not url.startswith((self.origin, "data:", "blob:")):
            self.foreign.append(url)


@pytest.fixture
def visitor(chromium: Browser, live_server: LiveServer) -> Iterator[Visitor]:
    screenshots = settings.ENVIRONMENT.home / "screenshots"
    screenshots.mkdir(parents=True, exist_ok=True)
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    somebody = Visitor(context.new_page(), live_server.url, screenshots)
    yield somebody
    context.close()
    assert somebody.foreign == []
    assert somebody.errors == []
