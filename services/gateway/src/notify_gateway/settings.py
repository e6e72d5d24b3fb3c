"""The gateway's settings."""

from notify_common.process import ServiceSettings
from notify_common.rabbitmq import RabbitSettings
from notify_database.engine import PostgresSettings
from pydantic import Field


class GatewaySettings(ServiceSettings, PostgresSettings, RabbitSettings):
    """What the gateway needs."""

    app_host: str = "127.0.0.1"
    app_port: int = Field(8080, ge=1, le=65535)
    max_waiting_requests: int = Field(5000, ge=1)
    postgres_pool_size: int = Field(10, ge=3, le=200)
