"""The product's public doors, as the demo's people use them: the command line, the control API, the console's pages.

The demo knows nothing else of Ratchet: no table, no service."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

MANAGE = Path(__file__).resolve().parents[2] / "manage.py"


class DoorClosed(RuntimeError):
    """A command, request or page refused; the text is what it said."""


def manage(*arguments: str, variables: dict[str, str] | None = None, check: bool = True) -> str:
    """Run `manage.py` with these arguments and return what it printed. Raises DoorClosed when it fails."""
    command = [sys.executable, str(MANAGE), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    if check and done.returncode != 0:
        raise DoorClosed(f"manage.py {arguments[0]}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


@dataclass(frozen=True)
class Project:
    """A project's name and key, as `create_project` printed them, and the two addresses to use it."""

    name: str
    api_key: str
    base_url: str
    """Of the gateway; ends in `/v1`."""
    console_url: str

    def get(self, path: str, **query: str | int) -> Any:
        """Read from the control API: `get("runs", limit=10)`. Raises DoorClosed."""
        answer = httpx.get(
            f"{self.console_url}/api/{path}",
            params=query,
            headers={"authorization": f"Bearer {self.api_key}"},
            timeout=30,
        )
        if answer.status_code != 200:
            raise DoorClosed(f"GET /api/{path}: {answer.status_code} {answer.text[:300]}")
        return answer.json()

    def pages(self, path: str, limit: int = 1000) -> Iterator[dict[str, Any]]:
        """All items of a list, page by page."""
        offset = 0
        while items := self.get(path, limit=limit, offset=offset)["items"]:
            yield from items
            offset += len(items)


class Visitor:
    """A person at the console: signs in and presses buttons, as a browser would."""

    def __init__(self, console_url: str, username: str, password: str) -> None:
        self._client = httpx.Client(base_url=console_url, follow_redirects=True, timeout=30)
        self._submit("/login/", {"username": username, "password": password})
        if "sessionid" not in self._client.cookies:
            raise DoorClosed(f"{username} could not sign in")

    def press(self, path: str, **fields: str) -> str:
        """Open a page, fill in its form and send it; return the page that follows."""
        return self._submit(path, fields)

    def _submit(self, path: str, fields: dict[str, str]) -> str:
        self._client.get(path if path.startswith("/login") else "/").raise_for_status()
        token = self._client.cookies.get("csrftoken", default="")
        answer = self._client.post(
            path,
            data={**fields, "csrfmiddlewaretoken": token},
            headers={"referer": str(self._client.base_url)},
        )
        if answer.status_code >= 400:
            raise DoorClosed(f"POST {path}: {answer.status_code}")
        return answer.text


def wait_for(what: str, look: Callable[[], Any], *, timeout_s: float, every_s: float = 0.25) -> Any:
    """Look until there is something to see; return it. Raises TimeoutError naming what did not come."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {timeout_s:.0f} s")
        time.sleep(every_s)
    return found


def last_json(text: str) -> dict[str, Any]:
    """The last line of a command's output, which is JSON."""
    line = re.split(r"\n", text.strip())[-1]
    value: dict[str, Any] = json.loads(line)
    return value
