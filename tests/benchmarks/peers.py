"""The gateways that Ratchet is compared with: how each is installed, configured, started and called.

Versions are pinned by `pins/`; nginx is Debian's. A peer is installed into a folder of its own below
`$RATCHET_HOME/bench/peers` and used again when it is there. Each runs as its makers start it, as one process, with
logging down, nothing captured unless it cannot be without, and what phones home switched off."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.pinned import START_TIMEOUT_S, CannotStart, Process, free_port

PINS = Path(__file__).parent / "pins"
PATH = "/v1/chat/completions"
INSTALL_TIMEOUT_S = 600.0

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where and how a running gateway is called."""

    port: int
    path: str = PATH
    model: str = "gpt-4o"
    headers: Mapping[str, str] = field(default_factory=dict)


class Peer:
    """One gateway. `install` may take minutes the first time; `launch` writes its configuration and starts it."""

    name: str
    language: str

    def install(self, folder: Path, say: Say) -> None:
        """Make the peer ready to start in `folder`. Raises CannotStart."""
        raise NotImplementedError

    def launch(self, folder: Path, upstream_port: int, core: int) -> tuple[Process, Door]:
        """Start it in front of 127.0.0.1:`upstream_port`; it may need a moment until it answers."""
        raise NotImplementedError


class Nginx(Peer):
    """Not a gateway for models: what relaying alone costs in C."""

    name = "nginx"
    language = "C"

    def install(self, folder: Path, say: Say) -> None:
        """The machine's own; without one, Debian's program alone, unpacked: its package would start a server."""
        if not self._program(folder):
            _command(["sh", "-c", "apt-get download nginx && dpkg -x nginx_*.deb ."], folder, say)

    @staticmethod
    def _program(folder: Path) -> str | None:
        return shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:{folder}/usr/sbin")

    def launch(self, folder: Path, upstream_port: int, core: int) -> tuple[Process, Door]:
        port = free_port()
        (folder / "nginx.conf").write_text(f"""
            daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr error;
            events {{ worker_connections 1024; }}
            http {{
              access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
              fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
              keepalive_requests 1000000000;
              upstream mock {{
                server 127.0.0.1:{upstream_port}; keepalive 64; keepalive_requests 1000000000;
              }}
              server {{
                listen 127.0.0.1:{port};
                location / {{
                  proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection "";
                  proxy_buffering off;
                }}
              }}
            }}""")
        command = [self._program(folder) or "nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
        return Process(command, log=folder / "nginx.log", cores=[core]), Door(port=port)


class LiteLLM(Peer):
    name = "LiteLLM"
    language = "Python"
    _KEY = "sk-bench-0123456789abcdef"

    def install(self, folder: Path, say: Say) -> None:
        _install_wheels(folder, PINS / "litellm.txt", say)

    def launch(self, folder: Path, upstream_port: int, core: int) -> tuple[Process, Door]:
        port = free_port()
        origin = f"http://127.0.0.1:{upstream_port}/v1"
        # JSON is YAML too.
        configuration = {
            "model_list": [
                {
                    "model_name": "gpt-4o",
                    "litellm_params": {
                        "model": "openai/gpt-4o",
                        "api_base": origin,
                        "api_key": "sk-upstream",
                    },
                }
            ],
            "litellm_settings": {"telemetry": False},
            "general_settings": {"master_key": self._KEY},
        }
        (folder / "config.yaml").write_text(json.dumps(configuration))
        command = [str(folder / "venv/bin/litellm"), "--config", "config.yaml", "--telemetry", "False"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        process = Process(
            command,
            log=folder / "litellm.log",
            cores=[core],
            LITELLM_LOCAL_MODEL_COST_MAP="True",
            LITELLM_TELEMETRY="False",
            LITELLM_LOG="ERROR",
        )
        return process, Door(port=port, headers={"authorization": f"Bearer {self._KEY}"})


class Portkey(Peer):
    name = "Portkey"
    language = "Node"

    def install(self, folder: Path, say: Say) -> None:
        pins = PINS / "portkey"
        if _is_installed(folder, pins / "package-lock.json"):
            return
        for name in ("package.json", "package-lock.json"):
            (folder / name).write_bytes((pins / name).read_bytes())
        _command(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"], folder, say
        )
        _mark_installed(folder, pins / "package-lock.json")

    def launch(self, folder: Path, upstream_port: int, core: int) -> tuple[Process, Door]:
        port = free_port()
        script = "node_modules/@portkey-ai/gateway/build/start-server.js"
        command = ["node", "--require", str(PINS / "portkey" / "loopback.cjs"), script, "--headless"]
        process = Process(
            [*command, f"--port={port}"],
            log=folder / "portkey.log",
            cores=[core],
            NODE_ENV="production",
        )
        headers = {
            "authorization": "Bearer sk-upstream",
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"http://127.0.0.1:{upstream_port}/v1",
        }
        return process, Door(port=port, headers=headers)


class TensorZero(Peer):
    """Its last wheel (the makers have stopped), started by the wheel's own helper, which chooses the port."""

    name = "TensorZero"
    language = "Rust"
    _START = """
import sys, tensorzero, threading
gateway = tensorzero._start_http_gateway(
    config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False
)
print(gateway.base_url, flush=True)
threading.Event().wait()
"""

    def install(self, folder: Path, say: Say) -> None:
        _install_wheels(folder, PINS / "tensorzero.txt", say)

    def launch(self, folder: Path, upstream_port: int, core: int) -> tuple[Process, Door]:
        (folder / "tensorzero.toml").write_text(f"""
            [gateway]
            disable_pseudonymous_usage_analytics = true
            observability.enabled = false
            [models.gpt-4o]
            routing = ["mock"]
            [models.gpt-4o.providers.mock]
            type = "openai"
            model_name = "gpt-4o"
            api_base = "http://127.0.0.1:{upstream_port}/v1/"
            api_key_location = "none"
            """)
        command = [str(folder / "venv/bin/python"), "-c", self._START, "tensorzero.toml"]
        process = Process(command, log=folder / "tensorzero.log", cores=[core], RUST_LOG="error")
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (said := re.search(r"http://127\.0\.0\.1:(\d+)(\S*)", process.log.read_text())):
            process.require_alive()
            if time.monotonic() > deadline:
                process.stop()
                raise CannotStart("it did not say where it listens")
            time.sleep(0.05)
        door = Door(
            port=int(said[1]), path=f"{said[2]}/chat/completions", model="tensorzero::model_name::gpt-4o"
        )
        return process, door


class Rllm(Peer):
    """Captures every call to SQLite, as it does by default."""

    name = "rllm-model-gateway"
    language = "Python"

    def install(self, folder: Path, say: Say) -> None:
        _install_wheels(folder, PINS / "rllm-model-gateway.txt", say)

    def launch(self, folder: Path, upstream_port: int, core: int) -> tuple[Process, Door]:
        port = free_port()
        (folder / "traces.db").unlink(missing_ok=True)
        command = [str(folder / "venv/bin/rllm-model-gateway"), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--worker", f"http://127.0.0.1:{upstream_port}/v1", "--db-path", "traces.db"]
        process = Process([*command, "--log-level", "error"], log=folder / "rllm.log", cores=[core])
        return process, Door(port=port, path=f"/sessions/bench{PATH}")


PEERS: tuple[Peer, ...] = (Nginx(), TensorZero(), Portkey(), Rllm(), LiteLLM())


def _install_wheels(folder: Path, pins: Path, say: Say) -> None:
    if _is_installed(folder, pins):
        return
    _command([sys.executable, "-m", "venv", "--clear", "venv"], folder, say)
    pip = ["venv/bin/python", "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    # Pinned whole, so there is nothing to resolve.
    _command([*pip, "--no-deps", "-r", str(pins)], folder, say)
    _mark_installed(folder, pins)


def _is_installed(folder: Path, pins: Path) -> bool:
    mark = folder / "installed"
    return mark.exists() and mark.read_bytes() == pins.read_bytes()


def _mark_installed(folder: Path, pins: Path) -> None:
    (folder / "installed").write_bytes(pins.read_bytes())


def _command(command: list[str], folder: Path, say: Say) -> None:
    say(" ".join(Path(word).name if "/" in word else word for word in command))
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT_S
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise CannotStart(f"it could not be installed: {error}") from None
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or [""]
        raise CannotStart(f"it could not be installed: {lines[-1][:200]}")
