"""The examples in the client's README run as they are."""

import asyncio
import re
from pathlib import Path

from notify_common.contracts.channels import Channel
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings
from support.examples import python_examples, run
from support.fakes import FakeProvider
from support.services import running_sender, running_status_writer, served_gateway

EXAMPLES = python_examples("clients/python/README.md")
EXPECTED = [
    r"sent\nemail sent 1 attempts\ntelegram sent 1 attempts\n",
    r"(\d{4}-.* (pending|sent)\n){2}",
    r"invalid_request req_\w+ \[\('message', 'must not be blank'\)\]\n",
    r"1 notification\n",
    r"[0-9a-f-]{36} email sent\n",
    "",
]


async def test_examples_print_what_they_should(
    rabbit: RabbitSettings, postgres: PostgresSettings, tmp_path: Path
) -> None:
    async with (
        running_sender(rabbit, FakeProvider()),
        running_sender(rabbit, FakeProvider(), channel=Channel.EMAIL),
        running_status_writer(rabbit, postgres),
        served_gateway(rabbit, postgres) as url,
    ):
        printed = [await asyncio.to_thread(run, example, str(url), tmp_path) for example in EXAMPLES]
    assert len(printed) == len(EXPECTED)
    for output, pattern in zip(printed, EXPECTED, strict=True):
        assert re.fullmatch(pattern, output), output
