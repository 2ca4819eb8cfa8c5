"""`make conformance`."""

import os
from pathlib import Path

from tests.conformance import packages
from tests.conformance.openai_python import suite as openai_python
from tests.conformance.product import running_product

HERE = Path(__file__).resolve().parent


def main() -> int:
    home = Path(os.environ.get("RATCHET_HOME", ".ratchet")).absolute() / "conformance"
    home.mkdir(parents=True, exist_ok=True)
    modules = packages.node_modules(HERE / "package.json", home / "node")
    suite = openai_python.install(home, modules)
    with running_product(home / "product") as product:
        c = openai_python.compare(suite, product, only_named=bool(os.environ.get("NAMED")))
    for x in (c.of_named_files(), c):
        print(x.asked, x.passed(x.direct), x.passed(x.through), len(x.differing))
        print("\n".join(x.differing[:300]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
