"""`make conformance`: does anything of OpenAI's and Anthropic's clients behave differently behind the gateway?

Fetches what it needs from PyPI and npm into `$RATCHET_HOME/conformance`; what runs then stays on this machine."""

import argparse
import os
import signal
import sys
from pathlib import Path

from tests.conformance import agent_runs, packages
from tests.conformance.openai_python import suite as openai_python
from tests.conformance.product import running_product
from tests.conformance.report import publish

MANIFEST = Path(__file__).resolve().parent / "package.json"


def main() -> int:
    """The exit status: 0 when nothing differs."""
    parser = argparse.ArgumentParser(prog="tests.conformance", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="OpenAI's tests of the named files only")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # stops what was started
    home = Path(os.environ.get("RATCHET_HOME", ".ratchet")).absolute()
    place = home / "conformance"
    place.mkdir(parents=True, exist_ok=True)
    print("Fetching OpenAI's suite, its mock provider and the SDKs ...", flush=True)
    modules = packages.node_modules(MANIFEST, place / "node")
    suite = openai_python.install(place, modules)
    fleet = agent_runs.install(place, modules.parent)
    with running_product(place / "product") as product:
        findings = agent_runs.compare(fleet, product)
        comparison = openai_python.compare(suite, product, only_named=options.quick)
    return 0 if publish(comparison, findings, home=home, is_complete=not options.quick) else 1


if __name__ == "__main__":
    raise SystemExit(main())
