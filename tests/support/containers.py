"""PostgreSQL 17 and RabbitMQ 4 in containers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from docker.errors import DockerException
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings
from notify_local.ports import Ports
from testcontainers.community.postgres import PostgresContainer
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import HttpWaitStrategy

USER = PASSWORD = DATABASE = "notify"
AMQP_PORT, MANAGEMENT_PORT, POSTGRES_PORT = 5672, 15672, 5432


@dataclass(frozen=True)
class ServerContainers:
    """The containers of both servers by name; their ports stay the same after a restart."""

    by_name: dict[str, DockerContainer]

    def postgres(self) -> PostgresSettings:
        container = self.by_name["postgres"]
        return PostgresSettings.model_validate(
            {
                "postgres_host": container.get_container_host_ip(),
                "postgres_port": container.get_exposed_port(POSTGRES_PORT),
                "postgres_database": DATABASE,
                "postgres_user": USER,
                "postgres_password": PASSWORD,
            }
        )

    def rabbit(self) -> RabbitSettings:
        container = self.by_name["rabbitmq"]
        return RabbitSettings.model_validate(
            {
                "rabbitmq_host": container.get_container_host_ip(),
                "rabbitmq_port": container.get_exposed_port(AMQP_PORT),
                "rabbitmq_user": USER,
                "rabbitmq_password": PASSWORD,
            }
        )

    def management_url(self) -> str:
        container = self.by_name["rabbitmq"]
        return f"http://{container.get_container_host_ip()}:{container.get_exposed_port(MANAGEMENT_PORT)}"

    def pid(self, name: str) -> int:
        """Return the process id of the container's main process, or 0 if the container is not running."""
        container = self.by_name[name].get_wrapped_container()
        container.reload()
        pid: int = container.attrs["State"]["Pid"]
        return pid

    def kill(self, name: str) -> None:
        """Kill the container and start it again, because Docker does not restart a manually killed container."""
        container = self.by_name[name].get_wrapped_container()
        container.kill("SIGKILL")
        container.start()


@contextmanager
def running_containers() -> Iterator[ServerContainers]:
    # The contexts below stop the containers. Ryuk would do so as well, but it is one more image to pull and trust.
    testcontainers_config.ryuk_disabled = True
    ports = Ports()
    try:
        postgres = PostgresContainer(
            "postgres:17", username=USER, password=PASSWORD, dbname=DATABASE, driver=None
        ).with_bind_ports(POSTGRES_PORT, ports.free(15432))
        rabbit = (
            DockerContainer("rabbitmq:4-management")
            .with_envs(RABBITMQ_DEFAULT_USER=USER, RABBITMQ_DEFAULT_PASS=PASSWORD)
            .with_bind_ports(AMQP_PORT, ports.free(25672))
            .with_bind_ports(MANAGEMENT_PORT, ports.free(35672))
            .waiting_for(
                HttpWaitStrategy(MANAGEMENT_PORT, "/api/health/checks/protocol-listener/amqp").with_basic_credentials(
                    USER, PASSWORD
                )
            )
        )
    except DockerException as error:
        raise RuntimeError(f"TEST_SERVERS=containers, but no Docker engine responds: {error}") from error
    with postgres, rabbit:
        yield ServerContainers({"postgres": postgres, "rabbitmq": rabbit})
