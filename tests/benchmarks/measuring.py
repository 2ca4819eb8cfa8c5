"""How one gateway is measured: which loads, in which order, pinned to which cores.

Owns the two cores, the mock upstream and the progress display. Does not know which gateways there are, nor what is
good enough."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.benchmarks.gateway_rows import CONNECTIONS, OPEN_RATE, Figures
from tests.benchmarks.load import Outcome, Plan
from tests.benchmarks.peers import Door
from tests.benchmarks.pinned import CannotStart, Process, free_port, running

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Times:
    """How long each part measures."""

    warm_up_s: float = 1.0
    closed_s: float = 3.0
    open_s: float = 2.0
    our_rounds: int = 6
    peer_rounds: int = 2
    long_words: int = 300
    """How often the mock says its nine words, a millisecond each: what the processor time of a chunk is taken from."""
    soak_requests: int = 1_000_000
    scaling_s: float = 5.0


SHORT = Times(
    warm_up_s=0.3,
    closed_s=0.7,
    open_s=0.7,
    our_rounds=2,
    peer_rounds=1,
    long_words=30,
    soak_requests=20_000,
    scaling_s=1.0,
)


class Bench:
    """The machine's two cores, the mock upstream, and how one gateway is measured."""

    def __init__(
        self, *, times: Times, folder: Path, cores: Sequence[int], mock: Process, mock_port: int
    ) -> None:
        self.times = times
        self.folder = folder
        self.gateway_core, self.load_core = cores
        self.mock = mock
        self.direct = Door(port=mock_port)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            refresh_per_second=2,
        )
        self._task = self.progress.add_task("", total=None)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.progress.console.print(line, highlight=False)

    def begin(self, name: str, steps: int) -> None:
        """Show that a part begins; each load is a step of it."""
        self.progress.reset(self._task, total=steps, description=name)
        if not self.progress.console.is_terminal:  # a log shows no bar
            self.say(f"{name} ...")

    def load(
        self,
        door: Door,
        *,
        is_stream: bool,
        connections: int,
        seconds: float,
        warm_up_s: float = 0.0,
        rate: float = 0.0,
        requests: int = sys.maxsize,
        text: str = "",
        cores: Sequence[int] = (),
    ) -> Outcome:
        """One run of the load generator, by default on the second core. Raises CannotStart when it fails."""
        told = Plan(
            port=door.port,
            path=door.path,
            headers=dict(door.headers),
            body=request_body(door.model, is_stream=is_stream, text=text),
            connections=connections,
            seconds=seconds,
            warm_up_s=warm_up_s,
            rate=rate,
            requests=requests,
        )
        pinned = ["taskset", "-c", ",".join(map(str, cores or [self.load_core]))]
        done = subprocess.run(
            [*pinned, sys.executable, "-m", "tests.benchmarks.load"],
            cwd=REPOSITORY,
            input=json.dumps(asdict(told)),
            capture_output=True,
            text=True,
            check=False,
        )
        self.progress.advance(self._task)
        if done.returncode != 0:
            raise CannotStart(f"the load generator: {done.stderr.strip().splitlines()[-1][:200]}")
        return Outcome(**json.loads(done.stdout))

    def measure(self, figures: Figures, door: Door, process: Process | None, rounds: int) -> None:
        """Fill in `figures`. Without a process it is the direct call, which adds nothing to itself."""
        self.begin(figures.name, len(CONNECTIONS) * 2 + (rounds * 4 + 1 if process else 0))
        for is_stream in (False, True):
            for connections in CONNECTIONS:
                before_s = process.cpu_s() if process else 0.0
                outcome = figures.closed[is_stream, connections] = figures.count(
                    self.load(
                        door,
                        is_stream=is_stream,
                        connections=connections,
                        seconds=self.times.closed_s,
                        warm_up_s=self.times.warm_up_s,
                    )
                )
                if process and (is_stream, connections) == (False, 8):
                    took_s = process.cpu_s() - before_s
                    figures.cpu_per_request_us = round(1e6 * took_s / outcome.sent, 1)
        if process is None:
            return
        figures.memory_mb = round(process.memory_mb(), 1)
        figures.cpu_per_chunk_us = self._cpu_per_chunk_us(figures, door, process)
        figures.added_first_byte_ms = round(self._added_first_byte_ms(figures, door, rounds), 3)
        self._measure_open_loop(figures, door, rounds)

    def _cpu_per_chunk_us(self, figures: Figures, door: Door, process: Process) -> float | None:
        before = process.cpu_s()
        outcome = figures.count(
            self.load(
                door,
                is_stream=True,
                text=f"pause:1:{self.times.long_words}",
                connections=1,
                requests=1,
                seconds=60,
            )
        )
        took_s = process.cpu_s() - before
        return round(1e6 * took_s / outcome.events, 1) if outcome.events else None

    def _added_first_byte_ms(self, figures: Figures, door: Door, rounds: int) -> float:
        """One stream at a time, whose chunks come 2 ms apart, by turns directly and through the gateway."""
        differences = []
        for _ in range(rounds):
            direct, through = (
                self.load(
                    to,
                    is_stream=True,
                    text="pause:2",
                    connections=1,
                    seconds=self.times.open_s,
                    warm_up_s=0.2,
                )
                for to in (self.direct, door)
            )
            differences.append(figures.count(through).first_byte_p50_ms - direct.first_byte_p50_ms)
        return statistics.median(differences)

    def _measure_open_loop(self, figures: Figures, door: Door, rounds: int) -> None:
        """By turns directly and through the gateway; the median of the differences."""
        p50s, p99s, kept = [], [], []
        for _ in range(rounds):
            direct, through = (
                self.load(
                    to,
                    is_stream=False,
                    connections=64,
                    rate=OPEN_RATE,
                    seconds=self.times.open_s,
                    warm_up_s=0.3,
                )
                for to in (self.direct, door)
            )
            figures.count(through)
            p50s.append(through.p50_ms - direct.p50_ms)
            p99s.append(through.p99_ms - direct.p99_ms)
            kept.append(through.per_second)
            if through.unanswered:  # it cannot keep the rate: a second round would only meet its backlog
                break
        figures.added_p50_ms = round(statistics.median(p50s), 3)
        figures.added_p99_ms = round(statistics.median(p99s), 3)
        figures.kept_per_second = round(statistics.median(kept), 1)


def request_body(model: str, *, is_stream: bool, text: str = "") -> dict[str, object]:
    """A support agent's first call, small as such calls are."""
    messages = [
        {"role": "system", "content": "You are the support agent of a parcel service. Be short and exact."},
        {"role": "user", "content": f"Where is my order 4817? {text}".strip()},
    ]
    return {"model": model, "messages": messages, **({"stream": True} if is_stream else {})}


@contextmanager
def prepared(times: Times, cores: Sequence[int]) -> Iterator[Bench]:
    """The mock upstream, on the second of these cores, and a bench before it."""
    folder = Path(os.environ.get("RATCHET_HOME", ".ratchet")).absolute() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [sys.executable, str(REPOSITORY / "tests" / "benchmarks" / "mock_upstream.py"), str(port)]
    with running(command, log=folder / "mock.log", cores=cores[1:]) as mock:
        mock.wait_ready(f"http://127.0.0.1:{port}/")
        bench = Bench(times=times, folder=folder, cores=cores, mock=mock, mock_port=port)
        with bench.progress:
            yield bench
