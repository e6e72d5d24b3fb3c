"""Test the whole system as operators start it, with and without faults."""

import asyncio
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import aio_pika
import httpx
import psutil
import pytest
from support.processes import STOP_TIMEOUT, System, all_final, local_command, running_system
from support.servers import PROJECT, in_containers
from support.services import eventually

FAST = {
    "TELEGRAM_SLEEP": "0.1", "EMAIL_SLEEP": "0.5", "ERROR_PROBABILITY": "0.2", "RETRY_DELAY": "0.2"
}  # fmt: skip
PROGRAMS = ("gateway", "telegram_sender", "email_sender", "status_writer", "rabbitmq", "postgres")
BURST = 500
ACCEPT_TIMEOUT = 60.0  # seconds; reached only if the test fails
of_the_local_stack = pytest.mark.skipif(in_containers(), reason="requires the local stack's private servers")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running_system(Path(tmp_path_factory.mktemp("system"), "local"), FAST) as system:
        yield system


async def post(client: httpx.AsyncClient, user_id: int, *channels: str) -> str:
    body = {"user_id": user_id, "message": "Your code: 11111", "channels": channels or ["telegram", "email"]}
    response = await client.post("/api/notifications", json=body)
    assert response.status_code == 201, response.text
    notification_id: str = response.json()["id"]
    return notification_id


async def post_until_accepted(client: httpx.AsyncClient, user_id: int) -> str:
    """Post as a careful client does: retry after a 503 or a broken connection."""
    deadline = time.monotonic() + ACCEPT_TIMEOUT
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            body = {"user_id": user_id, "message": "Your code: 11111", "channels": ["telegram", "email"]}
            response = await client.post("/api/notifications", json=body)
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                assert response.status_code == 201, response.text
                notification_id: str = response.json()["id"]
                return notification_id
        await asyncio.sleep(0.2)
    raise AssertionError("the notification was never accepted")


async def test_notification_reaches_a_final_status_on_both_channels(system: System) -> None:
    async with system.client() as client:
        [notification] = await all_final(client, [await post(client, 123)])
    assert notification["status"] in {"sent", "partially_sent", "failed"}
    for delivery in notification["deliveries"]:
        numbers = [attempt["number"] for attempt in delivery["attempts"]]
        assert numbers == list(range(1, len(numbers) + 1))
        assert delivery["attempts"][-1]["outcome"] == delivery["status"]


@of_the_local_stack
async def test_addresses_and_process_ids_are_written_for_scripts(system: System) -> None:
    addresses = system.addresses()
    assert set(addresses) == {"GATEWAY_URL", "RABBITMQ_URL", "RABBITMQ_MANAGEMENT_URL", "POSTGRES_URL"}
    for program in PROGRAMS:
        assert psutil.pid_exists(system.pid(program))
    assert psutil.Process(system.pid("rabbitmq")).name().startswith("beam")
    assert psutil.Process(system.pid("postgres")).name() == "postgres"


@of_the_local_stack
def test_second_stack_in_the_same_folder_is_refused(system: System) -> None:
    second = subprocess.run(  # noqa: S603 - ours
        local_command(system.folder, "up"), cwd=PROJECT, capture_output=True, text=True, timeout=30, check=False
    )
    assert second.returncode == 1
    assert "running in this folder already" in second.stderr


async def test_burst_of_500_requests_has_no_errors(system: System) -> None:
    async with system.client() as client:
        ids = await asyncio.gather(*(post(client, number) for number in range(1, BURST + 1)))
        notifications = await all_final(client, ids)
    assert {notification["status"] for notification in notifications} <= {"sent", "partially_sent", "failed"}


@pytest.mark.parametrize("victim", ["telegram_sender", "status_writer", "gateway", "rabbitmq", "postgres"])
async def test_killing_a_process_under_load_loses_nothing(system: System, victim: str) -> None:
    async with system.client() as client:
        accepted: asyncio.Queue[str] = asyncio.Queue()

        async def post_one(user_id: int) -> None:
            await accepted.put(await post_until_accepted(client, user_id))

        async with asyncio.TaskGroup() as posting:
            for number in range(1, BURST + 1):
                posting.create_task(post_one(number))
            ids = [await accepted.get() for _ in range(BURST // 2)]
            old_pid = system.pid(victim)
            system.kill(victim)
        ids += [accepted.get_nowait() for _ in range(BURST - len(ids))]
        assert {each["id"] for each in await all_final(client, ids)} == set(ids)
    assert len(set(ids)) == BURST

    async def restarted() -> bool:
        return system.pid(victim) not in {old_pid, 0} and psutil.pid_exists(system.pid(victim))

    await eventually(restarted, f"{victim} is restarted")


def test_demo_follows_every_row_and_reports_invalid_lines(system: System, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_bytes(
        "user_id,channels,message,subject,email,telegram\n"
        "1,telegram email,Привет,Hello,a@example.org,123456789\n"
        "..,telegram,nobody,,,\n"
        '2,email,"two\nlines",Hi,,\n'
        "3,pigeon,coo,,,\n"
        "4,telegram,今日は,,,\n".encode()
        + b"5,telegram,caf\xe9,,,\n"
    )
    demo = subprocess.run(  # noqa: S603 - ours
        local_command(system.folder, "demo", str(file)),
        cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert demo.returncode == 1
    assert "line 3: user_id:" in demo.stdout
    assert "line 6: channels.0:" in demo.stdout
    assert "line 8: is not UTF-8" in demo.stdout
    assert "3 of 6 notifications are final; 3 rows were rejected." in demo.stdout


def test_demo_with_the_example_file_completes(system: System) -> None:
    demo = subprocess.run(  # noqa: S603 - ours
        local_command(system.folder, "demo"), cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "300 of 300 notifications are final." in demo.stdout


async def test_messages_recipients_and_keys_are_never_logged(system: System) -> None:
    secret = f"secret-{uuid4().hex}"
    whole = {
        "user_id": 1, "message": secret, "subject": secret, "channels": ["telegram", "email"],
        "recipient": {"email": f"{secret}@example.org"}, "metadata": {"note": secret},
    }  # fmt: skip
    async with system.client() as client:
        headers = {"Idempotency-Key": secret, "Authorization": f"Bearer {secret}"}
        accepted = [await client.post("/api/notifications", json=whole, headers=headers) for _ in range(3)]
        for refused in ({**whole, "recipient": {"email": secret}}, {**whole, "user_id": secret}, secret):
            assert (await client.post("/api/notifications", json=refused)).status_code == 422
        await client.get("/api/notifications", params={"cursor": secret})
        await all_final(client, [accepted[0].json()["id"]])
    connection = await aio_pika.connect(system.amqp_url())
    async with connection:
        channel = await connection.channel()
        for exchange, key in (("notifications", "telegram"), ("notifications.results.telegram", "telegram")):
            for body in (secret, f'{{"version": 1, "message": "{secret}", "results": [{{"outcome": "{secret}"}}]}}'):
                await (await channel.get_exchange(exchange)).publish(aio_pika.Message(body.encode()), key)
        archive = await channel.get_queue("notifications.dead.telegram")

        async def all_are_dead() -> bool:
            return (await archive.declare()).message_count == 4

        await eventually(all_are_dead, "there are four dead letters")
        await archive.purge()
    logs = {file.name: file.read_text() for file in (system.folder / "log").glob("*.log")}
    assert "poison" in logs["telegram_sender.log"]
    assert [name for name, text in logs.items() if secret in text] == []


@of_the_local_stack
async def test_data_survives_a_restart_and_stopping_leaves_no_processes(tmp_path: Path) -> None:
    folder = tmp_path / "local"
    with running_system(folder, FAST) as system:
        async with system.client() as client:
            kept = await post(client, 5)
            await all_final(client, [kept])
        processes = [psutil.Process(system.pid(program)) for program in PROGRAMS]
        processes += psutil.Process(system.process.pid).children(recursive=True)
    _, alive = psutil.wait_procs(processes, timeout=STOP_TIMEOUT)
    assert alive == []
    assert not (folder / "stack.env").exists()
    with running_system(folder, FAST) as system:
        async with system.client() as client:
            assert (await client.get(f"/api/notifications/{kept}")).status_code == 200
        # If `notify_local` itself is killed, its child processes must end as well.
        processes = [psutil.Process(system.pid(program)) for program in PROGRAMS]
        system.process.kill()
        system.process.wait()
        _, alive = psutil.wait_procs(processes, timeout=STOP_TIMEOUT)
        assert alive == []
        system.process.returncode = 0
