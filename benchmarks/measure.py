"""Measurements of one contender: throughput, latency, CPU and losses."""

import json
import math
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.arithmetic import next_candidate, percentiles, worst
from benchmarks.contenders.contender import Contender
from benchmarks.figures import ContenderFigures, RateFigures, TailFigures
from benchmarks.paths import PROJECT
from benchmarks.running import Running
from benchmarks.servers import Servers
from benchmarks.steps import CONNECTIONS, Step, generate, load_command, post, requests_file, run_step, warm_up

SEARCH_STEPS = 9
CLOSE_ENOUGH = 1.06  # ratio of lowest unsustained to highest sustained rate at which the search stops
FIRST_CHANGE, LATER_CHANGE = 1.3, CLOSE_ENOUGH  # factors by which the offered rate changes at most between two steps
FIRST_SHARE = 0.5  # fraction of what is accepted under full load, as the first guess
SHARE = 0.95  # a fixed rate is measured only below this fraction of the highest sustained rate
TAIL_SHARE = 0.7  # fraction of the contender's own highest rate at which tail latencies are measured


def find_end_to_end(
    running: Running, figures: ContenderFigures, seconds: float, known: float | None, deadline: float
) -> None:
    """Find the highest sustained rate by bisection.

    The search begins with a guess from a full load, or with the rate `known` from an earlier round. It ends early at
    the monotonic time `deadline`, once a rate has been sustained.
    """
    if known is None:
        full_load = run_step(running, 0, seconds)
        # Under full load, accepting can leave hardly any CPU for sending, so the send rate alone may be far too low.
        candidate = max(full_load.rate(full_load.sent), FIRST_SHARE * full_load.rate(full_load.answered), 1.0)
    else:
        candidate = known
    lowest, highest = 0.0, math.inf
    change = FIRST_CHANGE if known is None else LATER_CHANGE
    best: Step | None = None
    for _ in range(SEARCH_STEPS):
        step = run_step(running, candidate, seconds, seed=figures.round)
        sustained = step.sustained(running.latency)
        figures.tried.append((round(candidate, 1), sustained))
        if sustained:
            lowest, best = candidate, step
        else:
            highest = candidate
        figures.search_ended = bool(lowest) and highest / lowest <= CLOSE_ENOUGH
        if figures.search_ended or (lowest and time.monotonic() > deadline):
            break
        candidate = next_candidate(lowest, highest, candidate, change)
    if best is not None:
        figures.end_to_end = best.rate(best.answered)
        figures.cpu = best.cpu_each


def measure_rates(running: Running, figures: ContenderFigures, rates: Sequence[float], seconds: float) -> None:
    """Measure latencies and CPU at each of `rates` that the contender can sustain."""
    for rate in rates:
        if rate > SHARE * figures.end_to_end:
            continue
        step = run_step(running, rate, seconds, seed=figures.round)
        figures.at[f"{rate:.0f}"] = RateFigures(
            post=percentiles(step.latencies),
            to_sent=percentiles(_without(step, figures.latency)),
            cpu=step.cpu_each,
            accepted=len(step.answered),
            left=step.left,
        )


def measure_tail(running: Running, figures: ContenderFigures, seconds: float) -> None:
    """Measure the largest latencies at 70 % of the contender's own highest rate."""
    if not figures.end_to_end:
        return
    step = run_step(running, TAIL_SHARE * figures.end_to_end, seconds, seed=figures.round)
    to_sent = _without(step, figures.latency)
    figures.tail = TailFigures(
        rate=step.offered,
        post_count=len(step.latencies),
        post=worst(step.latencies),
        to_sent_count=len(to_sent),
        to_sent=worst(to_sent),
    )


def _without(step: Step, latency: float) -> list[float]:
    return [each - latency for each in step.to_sent]


def stop_sending(running: Running) -> None:
    """Stop the processes that send; restart a contender without them that sends in its API's processes."""
    senders = [each.name for each in running.contender.programs(running.port) if each.sends]
    running.without_sending = True
    if senders:
        running.stop(*senders)
    else:
        running.restart()
        warm_up(running)


def measure_accepted(running: Running, figures: ContenderFigures, seconds: float) -> None:
    """Measure how many requests a second are accepted under full load while nothing is sent."""
    step = run_step(running, 0, seconds)
    figures.accepted = step.rate(step.answered)


def best_variant(contender: Contender, servers: Servers, latency: float, logs: Path, seconds: float) -> Contender:
    """Return the configuration of a contender that sends most under full load at this latency."""
    rates: dict[str, float] = {}
    for variant in contender.variants:
        running = Running(variant, servers, latency, logs)
        try:
            running.start()
            warm_up(running)
            before = len(running.query(variant.sent))
            generate(running.url, 0, seconds)
            rates[variant.key] = len(running.query(variant.sent)) - before
        finally:
            running.kill()
    return max(contender.variants, key=lambda variant: rates[variant.key], default=contender)


def count_lost(running: Running, rate: float, seconds: float, patience: float) -> dict[str, float]:
    """Kill all processes under load, restart them, and count the accepted notifications that are never sent."""
    with requests_file([post(running.url, running.request_headers)]) as file:
        command = load_command(running.url, file, rate, seconds + 1, CONNECTIONS)
        with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as loading:
            time.sleep(seconds)
            running.kill()
            output, _ = loading.communicate()
    accepted = set(json.loads(output)["ids"])
    running.start(fresh=False)
    began = time.monotonic()
    while True:
        sent = {str(row[0]) for row in running.query(running.contender.sent)}
        waited = time.monotonic() - began
        if accepted <= sent or waited > patience:
            return {"accepted": len(accepted), "lost": len(accepted - sent), "seconds": waited}
        time.sleep(0.5)
