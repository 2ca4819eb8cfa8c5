"""`python -m gateway --host 127.0.0.1 --port 8400`: the gateway as a process, until SIGTERM or SIGINT."""

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import sys

import django
import uvloop

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup()  # before anything that imports a model

from django.conf import settings  # noqa: E402

from gateway.app import Gateway, Limits  # noqa: E402
from gateway.relay import Patience  # noqa: E402
from gateway.routing import Timeouts  # noqa: E402
from gateway.snapshot import DatabaseSource  # noqa: E402
from gateway.snapshot_file import SnapshotFile  # noqa: E402
from gateway.wire.server import Server  # noqa: E402
from telemetry import otel  # noqa: E402
from telemetry.spool import Spool  # noqa: E402

log = logging.getLogger("gateway")

BACKLOG = 1024
GARBAGE_THRESHOLDS = (20_000, 50, 1_000)
"""A call leaves next to no cycles. The whole heap, in it the runs that are remembered, is walked once in many millions
of calls: at a hundred thousand runs that holds up every call under way for a tenth of a second."""
GRACE_S = 15.0
"""How long answers under way may go on once the process has been asked to stop."""


def main() -> None:
    """Read the arguments, refuse an occupied port, serve."""
    parser = argparse.ArgumentParser(prog="gateway", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--share-port", action="store_true", help="let further gateway processes listen on the same port"
    )
    arguments = parser.parse_args()
    problem = "" if arguments.share_port else _occupied(arguments.host, arguments.port)
    if problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
    sys.exit(uvloop.run(_serve(arguments.host, arguments.port, share_port=arguments.share_port)))


def _occupied(host: str, port: int) -> str:
    """A sentence when the address cannot be bound, or when a process listens there that shares its port."""
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(address[0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address[4])
    except OSError as error:
        return f"The gateway cannot listen on {host}:{port} ({error.strerror}): stop what does, or give another --port."
    return ""


async def _serve(host: str, port: int, *, share_port: bool) -> int:
    environment = settings.ENVIRONMENT
    gateway = Gateway(
        source=DatabaseSource(),
        snapshot_file=SnapshotFile(environment.snapshot, key=settings.KEYRING.credential_key),
        open_spool=lambda: Spool(
            environment.spool,
            max_bytes=environment.spool_max_bytes,
            fsync_interval_s=environment.fsync_interval_s,
        ),
        limits=Limits(
            timeouts=Timeouts(
                connect_s=environment.connect_timeout_s,
                first_byte_s=environment.first_byte_timeout_s,
                idle_s=environment.idle_timeout_s,
            ),
            patience=Patience(
                drains=environment.drain_on_disconnect,
                drain_max_bytes=environment.drain_max_bytes,
                drain_max_s=environment.drain_max_s,
            ),
            max_lag_s=environment.max_lag_s,
            is_strict=environment.strict_capture,
            # A Redis of the operator's own may serve gateways on other machines.
            has_peers=share_port or not environment.embedded_redis,
        ),
        key_pepper=settings.KEYRING.key_pepper,
        tracing=otel.connect(environment.otlp_endpoint, content=environment.otel_content),
        redis_url=environment.redis_url,
    )
    try:
        gateway.open()
    except OSError as error:
        log.error("the spool cannot be opened: %s", error)
        return 1
    stop_asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_asked.set)
    server = Server(gateway.serve)
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    await server.start(host, port, backlog=BACKLOG, share_port=share_port)
    await stop_asked.wait()
    await server.stop(grace_s=GRACE_S)
    await gateway.close()
    return 0


if __name__ == "__main__":
    main()
