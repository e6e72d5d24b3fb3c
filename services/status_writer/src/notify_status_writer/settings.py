"""The status writer's settings."""

from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.settings import WorkerSettings
from notify_database.engine import PostgresSettings
from pydantic import Field


class StatusWriterSettings(WorkerSettings, PostgresSettings, RabbitSettings):
    """The settings of the status writer."""

    health_port: int = Field(8083, ge=1, le=65535)
