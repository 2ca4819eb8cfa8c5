"""The demo is the product's promise, so it is a test: the whole loop on a new home, and what its report must say."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest


@contextmanager
def peak_memory(pid: int) -> Iterator[list[int]]:
    """Peak of the proportional set sizes (bytes) of a process and everything below it, sampled each second."""
    peak = [0]
    stop = threading.Event()

    def sample() -> None:
        root = psutil.Process(pid)
        while not stop.wait(1.0):
            total = 0
            for process in [root, *root.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


@pytest.mark.timeout(900)
def test_traffic_becomes_a_better_model_that_a_person_approved(installation, running) -> None:
    began = time.monotonic()
    demo = running("demo")
    with peak_memory(demo.pid) as peak:
        printed = demo.stdout.read()
        assert demo.wait() == 0, printed
    report = json.loads((installation.home / "demo" / "report.json").read_text())

    assert report["real_traffic"] == {
        "runs": 100, "calls": 1163, "strays": 0, "mean_reward": 0.49, "groups": 25,
    }  # fmt: skip
    assert 0.25 <= report["live_before"]["success"] <= 0.55
    assert report["training"]["algorithm"] == "grpo"
    evaluation = report["evaluation"]
    assert evaluation["tasks"] >= 300
    assert evaluation["verdict"] == "pass"
    assert evaluation["difference"] >= 0.20
    assert evaluation["ci95"][0] > 0.10
    promotion = report["promotion"]
    assert promotion["approved_by"] != promotion["requested_by"]
    assert promotion["reason"]
    assert report["live_after"]["success"] - report["live_before"]["success"] >= 0.20
    assert report["rollback_seconds"] < 2.0
    assert report["audit"]["verified"]
    assert report["audit"]["tamper_detected"]
    assert report["lost_calls"] == 0
    assert peak[0] < 4 * 2**30
    for word in ("promotion.approved", "snapshot.frozen", "reward_spec.published", "episode"):
        assert word in printed
    print(f"demo: {time.monotonic() - began:.0f} s, peak memory {peak[0] / 2**20:.0f} MiB")
