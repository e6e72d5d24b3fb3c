"""RabbitMQ's users, permissions, topology and policies as `deploy/rabbitmq/definitions.json` defines them."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from secrets import token_hex
from typing import Any

from notify_common.rabbitmq.connection import RabbitSettings
from pydantic import SecretStr

from support.servers import PROJECT, Servers

DEFINITIONS = PROJECT / "deploy/rabbitmq/definitions.json"


@contextmanager
def installed_definitions(servers: Servers, rabbit: RabbitSettings) -> Iterator[Mapping[str, RabbitSettings]]:
    """Load the definitions into the virtual host of a test; yield each role's login, which ends with the context."""
    password, suffix = token_hex(16), rabbit.rabbitmq_vhost
    definitions: dict[str, list[dict[str, Any]]] = json.loads(
        re.sub(r"\$\{RABBITMQ_\w+_PASSWORD\}", password, DEFINITIONS.read_text())
    )
    del definitions["vhosts"]
    definitions["users"] = [user for user in definitions["users"] if user["name"] != "admin"]
    definitions["permissions"] = [each for each in definitions["permissions"] if each["user"] != "admin"]
    roles = [user["name"] for user in definitions["users"]]
    for user in definitions["users"]:
        user["name"] += suffix
    for each in definitions["permissions"]:
        each["user"] += suffix
    for kind in ("permissions", "parameters", "policies", "exchanges", "queues", "bindings"):
        for each in definitions[kind]:
            each["vhost"] = rabbit.rabbitmq_vhost
    with servers.management() as management:
        management.post("/api/definitions", json=definitions).raise_for_status()
        try:
            yield {
                role: rabbit.model_copy(
                    update={"rabbitmq_user": role + suffix, "rabbitmq_password": SecretStr(password)}
                )
                for role in roles
            }
        finally:
            for role in roles:
                management.delete(f"/api/users/{role}{suffix}").raise_for_status()
