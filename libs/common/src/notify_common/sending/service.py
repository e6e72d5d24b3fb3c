"""A sender as a process: the same for every channel but for its settings and its provider."""

from contextlib import aclosing
from datetime import timedelta
from pathlib import Path

from pydantic import Field

from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.rabbitmq.connection import RabbitSettings, create_broker
from notify_common.rabbitmq.consumer import Consumer
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.rabbitmq.worker import consume
from notify_common.runtime.metrics import process_registry
from notify_common.runtime.settings import WorkerSettings
from notify_common.sending.circuit_breaker import CircuitBreakers, ProviderLimits
from notify_common.sending.metrics import SenderMetrics
from notify_common.sending.provider import Provider
from notify_common.sending.retry_queue_depth import WaitingRetries
from notify_common.sending.retry_schedule import RetrySchedule
from notify_common.sending.sender import Sender
from notify_common.sending.simulator import Simulator, WithSimulatedRecipients

SETTLING_TIME = 5.0  # seconds, for results and acks after the last provider call


class SenderSettings(WorkerSettings, RabbitSettings):
    """What every sender has; times are seconds."""

    max_retries: int = Field(3, ge=1, le=1000)
    retry_delay: float = Field(1.0, ge=0.01, le=3600)
    max_wait: float = Field(86_400.0, ge=1, le=30 * 86_400)
    error_probability: float = Field(0.1, ge=0, le=1)
    simulator_folder: Path | None = None
    concurrency: int = Field(500, ge=1, le=65535)
    provider_timeout: float = Field(30.0, gt=0, le=600)

    def simulator(self, latency: float) -> Simulator:
        """The provider that sends nothing."""
        return Simulator(latency=latency, error_probability=self.error_probability, folder=self.simulator_folder)

    def schedule(self) -> RetrySchedule:
        """When attempts are made again."""
        return RetrySchedule(
            first_delay=timedelta(seconds=self.retry_delay),
            max_attempts=self.max_retries,
            max_wait=timedelta(seconds=self.max_wait),
        )


async def run_sender(
    settings: SenderSettings,
    *,
    channel: Channel,
    provider: Provider,
    limits: ProviderLimits | None = None,
    health_port: int,
) -> None:
    """Deliver over `channel` until SIGTERM; `limits`: of a provider that has to be protected."""
    role = f"{channel}_sender"
    broker = create_broker(settings, role)
    registry, tracing = process_registry(), settings.tracing(role)
    publisher, schedule = ConfirmedPublisher(broker), settings.schedule()
    breakers = CircuitBreakers(f"{channel} provider", limits) if limits else None
    sender = Sender(
        publisher,
        channel=channel,
        provider=WithSimulatedRecipients(provider),
        provider_timeout=settings.provider_timeout,
        schedule=schedule,
        metrics=SenderMetrics(registry, channel),
        breakers=breakers,
        tracing=tracing,
    )
    deliveries = topology.deliveries(channel)
    consumer = Consumer(broker, publisher, deliveries.queue.name, sender.handle, prefetch=settings.concurrency)
    async with aclosing(provider):
        await consume(
            broker,
            [consumer],
            role=role,
            rabbit=settings,
            health_host=settings.health_host,
            health_port=health_port,
            registry=registry,
            declares=[
                *topology.dead_letters(),
                topology.results(),
                deliveries,
                *topology.retries(channel, schedule.delays),
            ],
            stopping=breakers.stop if breakers else None,
            drained=sender.drained,
            before_scrape=WaitingRetries(broker, consumer, channel, schedule.delays, registry).count,
            graceful_timeout=settings.provider_timeout + SETTLING_TIME,
        )
