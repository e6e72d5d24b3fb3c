"""Each service has a PostgreSQL user with the rights that it needs, and no others."""
# ruff: noqa: S608 - the statements are constants

from contextlib import AsyncExitStack
from datetime import timedelta
from uuid import uuid4

import asyncpg
import pytest
from notify_common.contracts.ids import new_id
from notify_common.runtime.clock import utc_now
from notify_database.engine import PostgresSettings, create_engine
from notify_database.maintenance import PartitionMaintenance
from notify_database.models import Base
from notify_database.partitions import STORAGE, WIDTH, drop_partitions, first_end, partition_name
from notify_database.rights import OWNER, RIGHTS, ROLES
from notify_local.stack import OWNER_USER, SERVICE_USERS
from support.roles import USERS, as_user, owners, session

WEEK = partition_name("deliveries", first_end(utc_now()))
EXTEND_THE_SERVER = (
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "COPY (SELECT 1) TO '/tmp/stolen'",
    "DROP EXTENSION plpgsql",
    "CREATE DATABASE mine",
    "CREATE ROLE mine",
    "CREATE SCHEMA mine",
    "ALTER SYSTEM SET log_statement = 'all'",
    "SELECT pg_reload_conf()",
    "SELECT pg_read_file('postgresql.conf')",
    "SELECT pg_ls_dir('.')",
    "SELECT pg_read_binary_file('PG_VERSION')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_create(0)",
    "SELECT lo_creat(-1)",
    "SELECT lo_from_bytea(0, 'x')",
    "SELECT * FROM pg_authid",
    "SELECT * FROM pg_shadow",
    "SELECT * FROM pg_largeobject",
    "SET session_replication_role = 'replica'",
    "SET SESSION AUTHORIZATION {admin}",
    "SET ROLE {admin}",
    "GRANT {admin} TO CURRENT_USER",
    "GRANT pg_execute_server_program TO CURRENT_USER",
    "ALTER ROLE CURRENT_USER SUPERUSER",
    "ALTER ROLE {admin} PASSWORD 'x'",
    "ALTER ROLE {other} PASSWORD 'x'",
    "DROP ROLE {other}",
    "CREATE TEMPORARY TABLE mine (id int)",
)
CHANGE_THE_SCHEMA = (
    f"SET ROLE {OWNER}",
    f"GRANT {OWNER} TO CURRENT_USER",
    "CREATE TABLE mine (id int)",
    "CREATE VIEW mine AS SELECT 1",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE TRIGGER t BEFORE UPDATE ON deliveries FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE INDEX mine ON deliveries (status)",
    "ALTER TABLE deliveries ADD COLUMN mine int",
    "ALTER TABLE deliveries DISABLE TRIGGER ALL",
    f"ALTER TABLE deliveries DETACH PARTITION {WEEK}",
    "DROP TABLE deliveries",
    f"DROP TABLE {WEEK}",
    "DROP SCHEMA public CASCADE",
    "REINDEX TABLE outbox",
    "SELECT * FROM alembic_version",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_try_advisory_xact_lock_shared(1, 1)",
    "UPDATE alembic_version SET version_num = '0001'",
    *(f"TRUNCATE {table}" for table in ("notifications", "deliveries", "attempts", "outbox", "api_keys")),
    *(f"DELETE FROM {table}" for table in ("notifications", "deliveries", "attempts")),
    *(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE" for table in ("notifications", "deliveries", "attempts")),
    # A partition is used only through its table.
    *(f"{verb} FROM {WEEK}" for verb in ("SELECT", "DELETE")),
    f"UPDATE {WEEK} SET status = 'sent'",
    *(f"UPDATE notifications SET {column} = {column}" for column in ("message", "tenant", "api_key_id")),
    *(f"UPDATE deliveries SET {column} = {column}" for column in ("id", "notification_id", "channel", "recipient")),
    "UPDATE attempts SET delivery_id = delivery_id",
)
FORBIDDEN = {
    "gateway": (
        *EXTEND_THE_SERVER,
        *CHANGE_THE_SCHEMA,
        "INSERT INTO attempts (delivery_id, attempt) VALUES (gen_random_uuid(), 1)",
        "UPDATE attempts SET outcome = 'sent'",
        "UPDATE deliveries SET attempt = 0",
        *(f"UPDATE api_keys SET {column} = {column}" for column in ("tenant", "name", "expires_at", "test")),
    ),
    "status_writer": (
        *EXTEND_THE_SERVER,
        *CHANGE_THE_SCHEMA,
        *(f"SELECT {column} FROM notifications" for column in ("message", "subject", "email", "user_id", "id")),
        "SELECT recipient FROM deliveries",
        "SELECT * FROM deliveries",
        *(
            f"SELECT FROM {table}"
            for table in ("outbox", "user_channels", "idempotency_keys", "api_keys", "api_key_buckets", "retry_jobs")
        ),
        "INSERT INTO notifications (id, user_id, message, created_at) VALUES (gen_random_uuid(), 1, 'x', now())",
        "INSERT INTO deliveries (id) VALUES (gen_random_uuid())",
        "INSERT INTO outbox (delivery_id, due_at) VALUES (gen_random_uuid(), now())",
        "INSERT INTO api_keys (id) VALUES (gen_random_uuid())",
        *(f"DELETE FROM {table}" for table in ("outbox", "user_channels", "idempotency_keys", "api_key_buckets")),
    ),
    OWNER_USER: EXTEND_THE_SERVER,
}
NOT_IN_A_TRANSACTION = ("CREATE DATABASE", "ALTER SYSTEM")


def names(with_roles: PostgresSettings, user: str) -> dict[str, str]:
    other = next(each for each in USERS if each != user)
    return {"admin": with_roles.postgres_user, "other": other}


@pytest.mark.parametrize("user", FORBIDDEN)
async def test_stolen_login_does_no_more_than_the_service(with_roles: PostgresSettings, user: str) -> None:
    allowed = []
    async with session(with_roles, user) as connection:
        for statement in FORBIDDEN[user]:
            if not statement.startswith(NOT_IN_A_TRANSACTION):
                await connection.execute("BEGIN")
            try:
                await connection.execute(statement.format(**names(with_roles, user)))
            except asyncpg.InsufficientPrivilegeError:
                pass
            except asyncpg.PostgresError as error:
                allowed.append(f"{statement}: {error!r}")
            else:
                allowed.append(statement)
            await connection.execute("ROLLBACK")
    assert allowed == []


async def open_sessions(sessions: AsyncExitStack, postgres: PostgresSettings, user: str) -> None:
    """Open sessions until PostgreSQL refuses one."""
    while True:
        await sessions.enter_async_context(session(postgres, user))


async def test_stolen_login_leaves_connections_to_the_other_services(with_roles: PostgresSettings) -> None:
    async with AsyncExitStack() as sessions:
        with pytest.raises(asyncpg.TooManyConnectionsError, match="status_writer"):
            await open_sessions(sessions, with_roles, "status_writer")
        for user in ("gateway", OWNER_USER):
            await sessions.enter_async_context(session(with_roles, user))


async def test_connection_limits_of_all_logins_leave_some_to_the_administrator(with_roles: PostgresSettings) -> None:
    async with session(with_roles) as connection:
        limits = [
            await connection.fetchval("SELECT rolconnlimit FROM pg_roles WHERE rolname = $1", user)
            for user in ("gateway", "status_writer", OWNER_USER)
        ]
        # Three connections are for superusers.
        connections = await connection.fetchval("SELECT current_setting('max_connections')::int - 3")
        assert limits == [connections * share // 100 for share in (70, 18, 10)]


async def test_only_the_owner_creates_tables_and_they_belong_to_its_role(with_roles: PostgresSettings) -> None:
    async with session(with_roles, OWNER_USER) as connection:
        await connection.execute("CREATE TABLE mine (id int)")
        owner = "SELECT relowner::regrole::text FROM pg_class WHERE oid = 'mine'::regclass"
        assert await connection.fetchval(owner) == OWNER


async def test_no_role_has_attributes_or_memberships_beyond_its_own(with_roles: PostgresSettings) -> None:
    async with session(with_roles) as connection:
        roles = await connection.fetch(
            """SELECT rolname, rolcanlogin FROM pg_roles
            WHERE rolname = ANY($1) AND NOT (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)
            """,
            [*ROLES, *USERS],
        )
        members = await connection.fetch(
            """SELECT member::regrole::text, roleid::regrole::text FROM pg_auth_members
            WHERE member::regrole::text = ANY($1)""",
            [*ROLES, *USERS],
        )
        functions = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        assert await connection.fetchval(functions) == 0
    assert {row["rolname"]: row["rolcanlogin"] for row in roles} == {
        **dict.fromkeys(ROLES, False), **dict.fromkeys(USERS, True)
    }  # fmt: skip
    assert {tuple(row) for row in members} == {(user, f"notify_{user}") for user in USERS}


async def test_a_stranger_can_neither_connect_nor_use_the_schema(with_roles: PostgresSettings) -> None:
    stranger = f"stranger_{uuid4().hex}"
    password = with_roles.postgres_password.get_secret_value()
    async with session(with_roles) as connection:
        await connection.execute(f"CREATE ROLE {stranger} LOGIN PASSWORD '{password}'")
        try:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with session(with_roles, stranger):
                    pass
            allowed = "SELECT has_schema_privilege($1, 'public', 'USAGE'), has_table_privilege($1, 'outbox', 'SELECT')"
            assert [tuple(row) for row in await connection.fetch(allowed, stranger)] == [(False, False)]
        finally:
            await connection.execute(f"DROP ROLE {stranger}")


async def test_login_cannot_read_another_database(with_roles: PostgresSettings) -> None:
    other = f"test_{uuid4().hex}"
    async with session(with_roles) as connection:
        await connection.execute(f"CREATE DATABASE {other}")
        try:
            foreign = with_roles.model_copy(update={"postgres_database": other})
            async with session(foreign) as theirs:
                await theirs.execute("CREATE TABLE secrets AS SELECT 1 AS secret")
            for user in USERS:
                async with session(foreign, user) as mine:
                    with pytest.raises(asyncpg.InsufficientPrivilegeError):
                        await mine.execute("SELECT * FROM secrets")
        finally:
            await connection.execute(f"DROP DATABASE {other} WITH (FORCE)")


@pytest.mark.parametrize("database", ["postgres", "template1"])
async def test_login_cannot_connect_to_the_databases_of_every_cluster(
    with_roles: PostgresSettings, database: str
) -> None:
    """There, it could fill the disk with large objects, and create temporary tables."""
    for user in USERS:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match=f'permission denied for database "{database}"'):
            async with session(with_roles.model_copy(update={"postgres_database": database}), user):
                pass


async def test_owner_makes_and_drops_weeks_that_services_use(with_roles: PostgresSettings) -> None:
    first = first_end(utc_now())
    async with session(with_roles, OWNER_USER) as owner:
        for table in STORAGE:  # replace the first week, which covers the past
            week = "FOR VALUES FROM (MINVALUE) TO ('{}')"
            bound = await owner.fetchval(
                "SELECT substring(pg_get_expr(relpartbound, oid) FROM $$TO \\('([^']+)'\\)$$) FROM pg_class "
                "WHERE oid = to_regclass($1)",
                partition_name(table, first),
            )
            old = partition_name(table, first - 10 * WIDTH)
            await owner.execute(f"ALTER TABLE {table} DETACH PARTITION {partition_name(table, first)}")
            await owner.execute(f"DROP TABLE {partition_name(table, first)}")
            earlier = bound.replace(bound[:8], "01900000")
            await owner.execute(f"CREATE TABLE {old} PARTITION OF {table} {week.format(earlier)}")
    engine = create_engine(as_user(with_roles, OWNER_USER), pool_size=1)
    await PartitionMaintenance(engine, timedelta(weeks=2)).advance()
    await engine.dispose()
    async with session(with_roles, "gateway") as gateway:
        assert await gateway.fetchval(
            "SELECT to_regclass($1) IS NULL", partition_name("deliveries", first - 10 * WIDTH)
        )
        delivery_id = new_id(utc_now())
        await gateway.execute(
            """INSERT INTO deliveries (id, notification_id, channel, status, round, attempt, failures, updated_at)
            VALUES ($1, $1, 'email', 'pending', 1, 0, 0, now())""",
            delivery_id,
        )
    async with session(with_roles, "status_writer") as writer:
        changed = await writer.execute("UPDATE deliveries SET status = 'sent' WHERE id = $1", delivery_id)
        assert changed == "UPDATE 1"
        assert await owners(writer) == {OWNER}


@pytest.mark.parametrize("user", sorted(SERVICE_USERS))
async def test_service_cannot_drop_a_week_that_retention_allows(with_roles: PostgresSettings, user: str) -> None:
    engine = create_engine(as_user(with_roles, user), pool_size=1)
    await PartitionMaintenance(engine, timedelta(weeks=0)).advance()
    with pytest.raises(Exception, match="InsufficientPrivilege"):
        await drop_partitions(engine, -52 * WIDTH)
    await engine.dispose()
    async with session(with_roles) as connection:
        assert await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", WEEK)


def test_rights_name_only_tables_and_columns_that_exist() -> None:
    for tables in RIGHTS.values():
        for table, rights in tables.items():
            columns = set(Base.metadata.tables[table].columns.keys())
            for right in rights:
                _, _, listed = right.partition(" (")
                assert {each.strip() for each in listed.rstrip(")").split(",") if listed} <= columns
