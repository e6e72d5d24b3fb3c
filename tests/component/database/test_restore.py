"""Back up and restore the database with the documented commands."""

import asyncio
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from notify_database.engine import PostgresSettings, create_engine, database_problem
from notify_database.migrate import prepare_database
from notify_database.rights import OWNER
from notify_local.postgres import DATABASE, binary
from notify_local.stack import OWNER_USER
from support.roles import USERS, as_user, migration_settings, owners, session

OPERATIONS = Path(__file__).parents[3] / "docs/operations.md"
# The function notes the name of a superuser in whose session it runs. A restored row makes PostgreSQL call it.
PLANT = """
    CREATE TABLE caught (name text);
    CREATE FUNCTION catch(uuid) RETURNS bool LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM set_config('role', 'none', false);
            INSERT INTO public.caught SELECT session_user WHERE current_setting('is_superuser')::bool;
            RETURN true;
        END $$;
    INSERT INTO outbox (delivery_id, due_at) VALUES (gen_random_uuid(), now());
    ALTER TABLE outbox ADD CHECK (catch(delivery_id));
"""


def documented() -> Sequence[Sequence[str]]:
    """Return the words of the documented commands."""
    _, found, rest = OPERATIONS.read_text().partition("\n## Back up and restore\n")
    assert found
    commands = re.findall(r"^\$ docker compose (.*)$", rest.partition("\n### ")[0], re.MULTILINE)
    return [shlex.split(command, comments=True) for command in commands]


async def run(command: Sequence[str], postgres: PostgresSettings, dump: bytes = b"") -> bytes:
    """Run a documented command with the test's server, database and dump, and return its output."""
    if command == ["run", "--rm", "migrate"]:
        await prepare_database(migration_settings(postgres))
    if "postgres" not in command:
        return b""
    program, *arguments = command[command.index("postgres") + 1 :]
    restoring = "<" in arguments
    for redirection in {"<", ">"} & set(arguments):
        arguments = arguments[: arguments.index(redirection)]
    environment = {
        **os.environ,
        "PGHOST": postgres.postgres_host,
        "PGPORT": str(postgres.postgres_port),
        "PGPASSWORD": postgres.postgres_password.get_secret_value(),
    }
    process = await asyncio.create_subprocess_exec(
        binary(program),
        *(postgres.postgres_database if each == DATABASE else each for each in arguments),
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate(dump if restoring else None)
    assert process.returncode == 0, command
    return output


async def test_restored_dump_has_all_rows_and_runs_no_code_as_the_administrator(
    with_roles: PostgresSettings, another_postgres: PostgresSettings
) -> None:
    async with session(with_roles, OWNER_USER) as owner:
        await owner.execute(PLANT)
    backup, *restore = documented()
    # The second dump is one of a restored database.
    for target in (with_roles, another_postgres):
        dump = await run(backup, with_roles)
        for command in restore:
            await run(command, target, dump)
        async with session(target) as connection:
            assert await connection.fetchval("SELECT count(*) FROM outbox") == 1
            assert await connection.fetch("SELECT * FROM caught") == []
            assert await owners(connection) == {OWNER}
        for user in USERS:
            engine = create_engine(as_user(target, user), pool_size=1)
            assert await database_problem(engine) is None
            await engine.dispose()
        async with session(target, "gateway") as gateway:
            await gateway.execute("SELECT FROM api_keys")
