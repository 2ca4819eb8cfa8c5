"""The policy server process: `python -m workers.policy_server --base PATH --port N`.

Binds the loopback interface unless told otherwise, has no database, and fetches nothing from anywhere.
SIGTERM lets the answers under way finish."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

# Before torch and transformers are imported: they read these once.
os.environ.update(
    # Waiting threads sleep: spinning ones starve the other processes of this machine, and are starved.
    OMP_WAIT_POLICY="PASSIVE",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    DO_NOT_TRACK="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
)

import torch
from aiohttp import web
from transformers.utils import logging as transformers_logging

from learning.artifacts import UnsafeArtifact
from workers.policy_server.app import PolicyServer, make_app
from workers.policy_server.engine import Engine

GRACE_S = 20.0


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workers.policy_server", description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model (safetensors)")
    parser.add_argument("--served-model-name", help="name of the base model; default: the folder's name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one, which is then printed")
    parser.add_argument("--uds", help="serve on this Unix socket instead of host and port")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads for the model")
    parser.add_argument("--max-batch", type=int, default=32, help="answers decoded at once")
    parser.add_argument(
        "--logprobs-mode",
        choices=["raw_logprobs", "processed_logprobs"],
        default="raw_logprobs",
        help="report the model's own log-probabilities, or those after temperature and top-p",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(options.threads)
    base: Path = options.base.resolve()
    try:
        engine = Engine(base, processed_logprobs=options.logprobs_mode == "processed_logprobs")
    except UnsafeArtifact as error:
        print(f"cannot serve this base model: {error}", file=sys.stderr)
        return 2
    name = options.served_model_name or base.name
    asyncio.run(_serve(engine, base, name, options))
    return 0


async def _serve(engine: Engine, base: Path, name: str, options: argparse.Namespace) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    server = PolicyServer(engine, base=base, name=name, max_batch=options.max_batch)
    # A client that goes away must free its place in the batch, so its handler is cancelled.
    runner = web.AppRunner(
        make_app(server), access_log=None, handler_cancellation=True, shutdown_timeout=GRACE_S
    )
    await runner.setup()
    site: web.BaseSite = (
        web.UnixSite(runner, options.uds) if options.uds else web.TCPSite(runner, options.host, options.port)
    )
    await site.start()
    address = options.uds or "http://{}:{}".format(*runner.addresses[0][:2])
    print(f"policy server ready: {name} on {address}", flush=True)
    await stopping.wait()
    await runner.cleanup()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
