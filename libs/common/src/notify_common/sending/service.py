"""Wire up a sender, for its process and for tests. Channels differ only in their settings and providers."""

from contextlib import aclosing
from datetime import timedelta
from functools import partial
from pathlib import Path

from pydantic import Field

from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.rabbitmq.connection import RabbitSettings, create_broker
from notify_common.rabbitmq.consumer import BatchingConsumer
from notify_common.rabbitmq.declaration import DeclaredTopology
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.rabbitmq.worker import Worker
from notify_common.runtime.metrics import process_registry
from notify_common.runtime.process import run
from notify_common.runtime.settings import WorkerSettings
from notify_common.runtime.tracing import Tracing
from notify_common.sending.admission_by_provider import AdmissionByProvider
from notify_common.sending.metrics import SenderMetrics
from notify_common.sending.process_pauses import ProcessPauses
from notify_common.sending.provider import Provider
from notify_common.sending.provider_limits import ProviderLimits
from notify_common.sending.retry_publisher import RetryPublisher
from notify_common.sending.retry_queue_depth import RetryQueueDepth
from notify_common.sending.retry_schedule import RetrySchedule
from notify_common.sending.sender import Sender
from notify_common.sending.simulator import Simulator, WithSimulation

ACK_TIME = 5.0  # seconds, for results and acks after the last provider call


class SenderSettings(WorkerSettings, RabbitSettings):
    """The settings of every sender; times are in seconds."""

    max_retries: int = Field(3, ge=1, le=1000)
    retry_delay: float = Field(1.0, ge=0.01, le=3600)
    max_wait: float = Field(86_400.0, ge=1, le=30 * 86_400)
    error_probability: float = Field(0.1, ge=0, le=1)
    simulator_folder: Path | None = None
    concurrency: int = Field(500, ge=1, le=65535)
    provider_timeout: float = Field(30.0, gt=0, le=600)

    def with_simulation(self, provider: Provider | None, *, latency: float) -> WithSimulation:
        """Return `provider` with simulated test deliveries. Without it, all calls are simulated, and take `latency`."""
        latency = latency if provider is None else 0  # simulated calls must not delay those to the provider
        simulator = Simulator(latency=latency, error_probability=self.error_probability, folder=self.simulator_folder)
        return WithSimulation(provider or simulator, simulator)

    def graceful_timeout(self) -> float:
        """Return the seconds in which a sender that stops can finish its calls and report their results."""
        return self.provider_timeout + ACK_TIME

    def prefetch(self, limits: ProviderLimits | None) -> int:
        """Return how many messages the sender holds at most."""
        return self.concurrency if limits is None else limits.prefetch(self.concurrency, self.provider_timeout)

    def schedule(self) -> RetrySchedule:
        """Return the schedule for retrying failed attempts."""
        return RetrySchedule(
            first_delay=timedelta(seconds=self.retry_delay),
            max_attempts=self.max_retries,
            max_wait=timedelta(seconds=self.max_wait),
        )


def create_sender(
    settings: SenderSettings,
    *,
    channel: Channel,
    provider: WithSimulation,
    limits: ProviderLimits | None = None,
    tracing: Tracing | None = None,
    publisher_class: type[ConfirmedPublisher] = ConfirmedPublisher,
) -> Worker:
    """Wire up the sender for `channel`. Calls have `limits`, except for those that are simulated."""
    role, registry, schedule = f"{channel}_sender", process_registry(), settings.schedule()
    # During an alarm, RabbitMQ reads nothing from a connection that publishes, so acks need a connection of their own.
    consuming, broker = create_broker(settings, role), create_broker(settings, f"{role}.publish")
    declared = DeclaredTopology(settings, topology.sender(channel, schedule.delays), role=role)
    create_publisher = partial(publisher_class, broker, declared.restore)
    controls = AdmissionByProvider(f"{channel} provider", limits) if limits else None
    prefetch, metrics = settings.prefetch(limits), SenderMetrics(registry, channel)
    sender = Sender(
        create_publisher(),
        RetryPublisher(create_publisher, channel=channel, schedule=schedule, metrics=metrics, prefetch=prefetch),
        channel=channel,
        provider=provider,
        provider_timeout=settings.provider_timeout,
        schedule=schedule,
        metrics=metrics,
        pauses=ProcessPauses(settings.rabbitmq_heartbeat),
        controls=controls,
        tracing=tracing or settings.tracing(role),
    )
    subscription = BatchingConsumer(
        consuming,
        topology.delivery_queue_name(channel),
        handle=sender.handle,
        prefetch=prefetch,
        publisher=create_publisher(),
        graceful_timeout=settings.graceful_timeout(),
        ready=sender.reporter.can_report,
    )
    return Worker(
        topology=declared,
        broker=broker,
        consuming=consuming,
        subscriptions=[subscription],
        registry=registry,
        resources=[aclosing(provider), sender.pauses.watching()],
        stopping=controls.stop if controls else lambda: None,
        drained=sender.drained,
        before_scrape=RetryQueueDepth(subscription, channel, schedule.delays, registry).count,
        graceful_timeout=settings.graceful_timeout(),
    )


def run_sender(
    settings: SenderSettings, channel: Channel, provider: WithSimulation, limits: ProviderLimits | None = None
) -> None:
    """Run the sender for `channel` until SIGTERM."""

    async def serve() -> None:
        sender = create_sender(settings, channel=channel, provider=provider, limits=limits)
        await sender.serve(settings.health_host, settings.health_port)

    run(serve, settings)
