"""`python -m gateway --host 127.0.0.1 --port 8400`: the gateway as a process, until SIGTERM or SIGINT."""

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys

import django
import uvloop
from granian.constants import HTTPModes, Interfaces
from granian.errors import FatalError
from granian.log import LogLevels
from granian.server.embed import Server

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup()  # before anything that imports a model

from django.conf import settings  # noqa: E402

from gateway.app import Gateway, Limits  # noqa: E402
from gateway.snapshot import DatabaseSource  # noqa: E402
from telemetry import otel  # noqa: E402
from telemetry.spool import Spool  # noqa: E402

BACKLOG = 1024


def main() -> None:
    """Read the arguments, refuse an occupied port, serve."""
    parser = argparse.ArgumentParser(prog="gateway", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    problem = _occupied(arguments.host, arguments.port)
    if problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
    uvloop.run(_serve(arguments.host, arguments.port))


def _occupied(host: str, port: int) -> str:
    """A sentence when the address cannot be bound. Asked here because the server binds with SO_REUSEPORT,
    which would let two gateways share a port without a word."""
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(address[0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address[4])
    except OSError as error:
        return f"The gateway cannot listen on {host}:{port} ({error.strerror}): stop what does, or give another --port."
    return ""


async def _serve(host: str, port: int) -> None:
    environment = settings.ENVIRONMENT
    gateway = Gateway(
        source=DatabaseSource(),
        open_spool=lambda: Spool(environment.spool, max_bytes=environment.spool_max_bytes),
        limits=Limits(
            first_byte_timeout_s=environment.first_byte_timeout_s, idle_timeout_s=environment.idle_timeout_s
        ),
        key_pepper=settings.KEYRING.key_pepper,
        tracing=otel.connect(environment.otlp_endpoint),
    )
    server = Server(
        gateway,
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        websockets=False,
        backlog=BACKLOG,
        log_level=LogLevels.error,  # one below, it warns at each start that embedding is experimental
    )
    stop_asked = asyncio.Event()

    def stop() -> None:
        stop_asked.set()
        loop.call_soon(server.stop)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    with contextlib.suppress(FatalError):  # its reason has been logged by the application
        await server.serve()
    if not stop_asked.is_set():
        sys.exit("The gateway could not start; its log says why.")


if __name__ == "__main__":
    main()
