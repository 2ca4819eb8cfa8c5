"""A fresh installation tells its first visitor what to do next, with and without JavaScript."""

from playwright.sync_api import Browser, expect
from pytest_django.live_server_helper import LiveServer

from tests.browser.conftest import Visitor
from tests.browser.scene import PASSWORD, person


def test_the_first_admin_is_told_the_next_step(visitor: Visitor, transactional_db: None) -> None:
    person("root", is_superuser=True)
    visitor.sign_in("root")
    expect(visitor.page.get_by_text("python manage.py create_project")).to_be_visible()
    expect(visitor.page.get_by_text("base_url=")).to_be_visible()
    visitor.shoot("home-fresh")


def test_a_person_without_a_membership_is_told_whom_to_ask(visitor: Visitor, transactional_db: None) -> None:
    person("newcomer")
    visitor.sign_in("newcomer")
    expect(visitor.page.get_by_text("Ask one of its admins to add you")).to_be_visible()


def test_pages_work_without_javascript(
    chromium: Browser, live_server: LiveServer, transactional_db: None
) -> None:
    person("root", is_superuser=True)
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{live_server.url}/login/")
    page.get_by_label("Username").fill("root")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Nothing to see yet")).to_be_visible()
    context.close()
