"""`manage.py run`, as `make run` calls it: what a newcomer sees, what breaks, what comes back, how it ends."""

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from config import embedded, environment

Start = Callable[..., "subprocess.Popen[str]"]
QUESTION = {
    "model": "support-desk",
    "messages": [{"role": "user", "content": "Order 4817: my lamp is broken."}],
}


def read_until(process: "subprocess.Popen[str]", last: str) -> str:
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if last in line:
            return text
    raise AssertionError(f"ended before {last!r}: {text}")


def ask(installation, key: str) -> httpx.Response:
    return httpx.post(
        f"{installation.gateway}/v1/chat/completions",
        headers={"authorization": f"Bearer {key}"},
        json=QUESTION,
        timeout=30,
    )


def summary(installation, key: str) -> dict:
    answer = httpx.get(
        f"{installation.console}/api/summary", headers={"authorization": f"Bearer {key}"}, timeout=30
    )
    return answer.raise_for_status().json()


def supervised(installation, name: str) -> psutil.Process:
    supervisor = psutil.Process(int((installation.home / "supervisord.pid").read_text()))
    return next(child for child in supervisor.children() if name in " ".join(child.cmdline()))


@pytest.mark.timeout(240)
def test_a_newcomer_gets_everything_and_a_killed_gateway_comes_back(installation, running: Start) -> None:
    product = running("run")
    printed = read_until(product, "Ctrl-C stops everything.")
    key = re.search(r"API key\s+(rk_\S+)", printed)[1]
    assert installation.console in printed
    assert re.search(r"Password\s+\S{12,}", printed)
    assert "No upstream yet" in printed

    first = ask(installation, key)
    assert first.status_code == 200
    assert first.headers["x-ratchet-model-version"] == "support-desk-v1"
    assert installation.gateway in printed

    second = installation.manage("run")
    assert second.returncode != 0
    assert "already runs from" in second.stderr

    gateway = supervised(installation, "-m gateway")
    gateway.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while True:
        try:
            answer = ask(installation, key)
            break
        except httpx.TransportError:
            assert time.monotonic() < deadline, "the gateway did not come back"
            time.sleep(0.2)
    assert answer.status_code == 200
    assert supervised(installation, "-m gateway").pid != gateway.pid
    while summary(installation, key)["calls"] < 2:
        assert time.monotonic() < deadline + 30, "a call was lost"
        time.sleep(0.2)
    assert summary(installation, key)["lost_calls"] == 0

    children = psutil.Process(product.pid).children(recursive=True)
    product.send_signal(signal.SIGINT)
    rest = product.stdout.read()
    assert product.wait(timeout=60) == 0
    assert "Traceback" not in rest
    assert [child for child in psutil.wait_procs(children, timeout=10)[1] if child.is_running()] == []

    again = running("run")
    printed = read_until(again, "Ctrl-C stops everything.")
    assert "as before" in printed
    assert ask(installation, key).status_code == 200

    again.kill()  # its processes outlive it
    again.wait()
    after_all = running("run")
    printed = read_until(after_all, "Ctrl-C stops everything.")
    assert "Stopped what an earlier start had left behind" in printed
    assert ask(installation, key).status_code == 200


def test_servers_of_the_users_own_are_used_and_left_alone(
    installation, running: Start, tmp_path: Path
) -> None:
    theirs = environment.read({"RATCHET_HOME": str(tmp_path / "theirs")})
    embedded.start(theirs)
    try:
        installation.variables["DATABASE_URL"] = theirs.database_url
        installation.variables["REDIS_URL"] = theirs.redis_url
        product = running("run")
        printed = read_until(product, "Ctrl-C stops everything.")
        assert "embedded" not in printed
        key = re.search(r"API key\s+(rk_\S+)", printed)[1]
        assert ask(installation, key).status_code == 200
        deadline = time.monotonic() + 20
        while summary(installation, key)["runs"] < 1:
            assert time.monotonic() < deadline, "the call did not become a run"
            time.sleep(0.2)
        product.send_signal(signal.SIGINT)
        product.stdout.read()
        assert product.wait(timeout=60) == 0
        assert not (installation.home / "postgres").exists()
        assert embedded.start(theirs) == []  # both still run
    finally:
        embedded.stop(theirs)


def test_an_occupied_port_is_one_sentence(installation) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(installation.variables["RATCHET_CONSOLE_PORT"])))
        taken.listen()
        done = installation.manage("run")
    assert done.returncode == 2
    port = installation.variables["RATCHET_CONSOLE_PORT"]
    assert done.stderr.strip() == (
        f"CommandError: port {port} is taken: stop what uses it, or set RATCHET_CONSOLE_PORT to a free port"
    )


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("RATCHET_GATEWAY_PORT", "eighty", "RATCHET_GATEWAY_PORT must be a port number"),
        (
            "DATABASE_URL",
            "postgresql://nobody@127.0.0.1:9/none",
            "PostgreSQL does not answer at DATABASE_URL",
        ),
    ],
)
def test_a_wrong_variable_is_one_sentence_that_names_it(installation, name, value, sentence) -> None:
    installation.variables[name] = value
    done = installation.manage("run")
    assert done.returncode != 0
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_without_the_product_says_how_to_start_it(installation) -> None:
    done = installation.manage("explain", "support-desk")
    assert done.returncode == 1
    assert "start Ratchet with `make run`" in done.stderr
    assert "Traceback" not in done.stderr


def test_data_of_another_postgresql_is_refused_with_advice(installation) -> None:
    data = _data_folder(installation.home)
    (data / "PG_VERSION").write_text("9\n")
    done = installation.manage("run")
    assert done.returncode == 2
    assert "was written by PostgreSQL 9 and this is 18" in done.stderr
    (data / "PG_VERSION").write_text("18\n")


def _data_folder(home: Path) -> Path:
    """A data folder as an earlier start left it."""
    env = environment.read({"RATCHET_HOME": str(home)})
    embedded.start(env)
    embedded.stop(env)
    return home / "postgres" / "data"


def test_the_command_line_says_what_is_wrong_with_its_arguments(installation, running: Start) -> None:
    product = running("run")
    read_until(product, "Ctrl-C stops everything.")
    made = installation.manage("create_project", "mine", "--upstream", "ftp://somewhere/v1")
    assert made.returncode != 0
    assert "--upstream" in made.stderr
    good = installation.manage("create_project", "mine", "--upstream", "http://127.0.0.1:9/v1")
    printed = json.loads(good.stdout)
    assert printed["base_url"] == f"{installation.gateway}/v1"
    deadline = time.monotonic() + 5
    while (answer := ask(installation, printed["api_key"])).status_code == 401:
        assert time.monotonic() < deadline, "the gateway did not learn of the key"
        time.sleep(0.1)
    assert answer.status_code == 502
    assert "127.0.0.1:9" in answer.json()["error"]["message"]
