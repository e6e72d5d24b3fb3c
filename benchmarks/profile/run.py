"""One load: CPU, statements and batches first, and then, under the same load again, samples of the stacks."""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.pair.run import Load, measure_cpu, warm_up
from benchmarks.pair.stack import Stack
from benchmarks.profile import counts, statements
from benchmarks.profile.figures import LoadFigures
from benchmarks.profile.sampling import sample
from benchmarks.profile.stacks import Stacks, shares
from benchmarks.progress import say

SERVICES = ("gateway", "telegram_sender", "status_writer")
LAG = 11.0  # seconds; RabbitMQ updates its counts every 5 s, and idle processes of PostgreSQL report after 10 s
BEFORE_SAMPLES, AFTER_SAMPLES = 3, 1  # seconds of load around the samples


@dataclass(frozen=True)
class ProfiledLoad:
    """A load to profile."""

    name: str
    rate: float
    """The requests a second; 0 means as many as the gateway can answer over all connections."""
    samples: int
    """The samples a second; fewer if there is no CPU to spare, more if the processes are idle most of the time."""


@dataclass(frozen=True)
class Lengths:
    """The lengths of both parts in seconds."""

    load: float
    sampled: int


def profile(
    stack: Stack, management: str, load: ProfiledLoad, lengths: Lengths
) -> tuple[LoadFigures, Mapping[str, Stacks]]:
    """Measure one load; return its figures and the sampled stacks by process."""
    services = {name: stack.pids[name] for name in SERVICES}
    say(f"{load.name}: warming up …")
    warm_up(stack, load.rate)
    time.sleep(LAG)
    batches, messages, syncs = counts.batches(services), counts.messages(management), statements.wal_syncs(stack)
    statements.reset(stack)
    say(f"{load.name}: measuring CPU, statements and batches for {lengths.load:g} s …")
    cpu = measure_cpu(stack, Load(load.rate, lengths.load))
    executed = statements.read(stack, cpu.notifications)
    batches_after = counts.batches(services)
    time.sleep(LAG)
    messages_after, syncs_after = counts.messages(management), statements.wal_syncs(stack)
    synced = syncs_after.number - syncs.number
    say(f"{load.name}: sampling stacks for {lengths.sampled} s …")
    stacks = _sample_under_load(stack, services, load, lengths.sampled)
    figures = LoadFigures(
        name=load.name,
        rate=load.rate,
        seconds=lengths.load,
        cpu=cpu,
        statements=executed,
        batches=counts.batch_figures(batches, batches_after, cpu.notifications),
        messages=counts.message_figures(messages, messages_after, cpu.notifications),
        wal_syncs=synced / cpu.notifications,
        wal_sync_milliseconds=(syncs_after.milliseconds - syncs.milliseconds) / max(synced, 1),
        samples={name: sum(each.values()) for name, each in stacks.items()},
        most_samples=lengths.sampled * load.samples,
        areas={name: shares(each) for name, each in stacks.items()},
    )
    return figures, stacks


def _sample_under_load(
    stack: Stack, services: Mapping[str, int], load: ProfiledLoad, seconds: int
) -> Mapping[str, Stacks]:
    length = float(BEFORE_SAMPLES + seconds + AFTER_SAMPLES)
    with ThreadPoolExecutor(1) as threads:
        # The CPU of this run is not used, because sampling is part of it.
        loading = threads.submit(measure_cpu, stack, Load(load.rate, length))
        time.sleep(BEFORE_SAMPLES)
        stacks = sample(services, seconds, load.samples)
        loading.result()
    return stacks
