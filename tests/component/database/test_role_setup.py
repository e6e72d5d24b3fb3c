"""`notify-migrate` creates the PostgreSQL users, and hands the tables over to their owner."""

import asyncio
from uuid import uuid4

import asyncpg
import pytest
from notify_common.errors import StartupError
from notify_database.engine import PostgresSettings, create_engine, database_problem
from notify_database.migrate import migrate, prepare_database
from notify_database.partitions import make_partitions
from notify_database.rights import OWNER, ROLES
from notify_database.roles import set_up_roles
from notify_local.stack import OWNER_USER, SERVICE_USERS
from pydantic import SecretStr
from support.database import waiting_for_locks
from support.roles import USERS, as_user, migration_settings, owners, session

TIMEOUT = 20.0  # seconds; reached only if the test fails
LAST_WEEK = "SELECT max(relname) FROM pg_class WHERE relname ~ '^attempts_until_[0-9]+$'"


async def test_installation_of_one_superuser_is_handed_over_while_it_works(empty_postgres: PostgresSettings) -> None:
    engine = create_engine(empty_postgres, pool_size=3)
    await migrate(engine, "public")
    async with session(empty_postgres) as old, session(empty_postgres) as reader:
        assert await owners(old) == {empty_postgres.postgres_user}
        async with reader.transaction():
            await reader.execute("SELECT FROM deliveries")
            handing_over = asyncio.create_task(prepare_database(migration_settings(empty_postgres)))
            while not await waiting_for_locks(engine):
                assert not handing_over.done()
            # The old version's statements wait for at most half a second.
            await asyncio.wait_for(old.execute("SELECT FROM deliveries"), 2)
            assert not handing_over.done()
        await handing_over
        assert await owners(old) == {OWNER}
        await old.execute("INSERT INTO outbox (delivery_id, due_at) VALUES (gen_random_uuid(), now())")
        # A gateway of the old version creates one more week before it is replaced.
        await old.execute(f"DROP TABLE {await old.fetchval(LAST_WEEK)}")
        assert await make_partitions(engine)
        assert await owners(old) == {OWNER, empty_postgres.postgres_user}
    await prepare_database(migration_settings(empty_postgres))
    async with session(empty_postgres) as connection:
        assert await owners(connection) == {OWNER}
    await engine.dispose()


async def test_tables_of_others_in_the_schema_are_left_alone(empty_postgres: PostgresSettings) -> None:
    async with session(empty_postgres) as connection:
        await connection.execute("CREATE TABLE others (id int); CREATE TABLE orders_until_20261207 (id int)")
        await prepare_database(migration_settings(empty_postgres))
        owner = "SELECT relowner::regrole::text FROM pg_class WHERE relname IN ('others', 'orders_until_20261207')"
        assert {row[0] for row in await connection.fetch(owner)} == {empty_postgres.postgres_user}


async def test_owner_cannot_become_the_administrator_that_migrates(empty_postgres: PostgresSettings) -> None:
    settings = migration_settings(empty_postgres)
    administrator = create_engine(empty_postgres, pool_size=1)
    await set_up_roles(administrator, "public", settings.logins())
    await administrator.dispose()
    engine = create_engine(settings, pool_size=1)
    await migrate(engine, "public", "0013")
    await engine.dispose()
    async with session(empty_postgres, OWNER_USER) as owner:
        await owner.execute("""
            CREATE TABLE caught (name text);
            CREATE FUNCTION catch() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    PERFORM set_config('role', 'none', false);
                    INSERT INTO caught SELECT session_user WHERE current_setting('is_superuser')::bool;
                    RETURN NULL;
                END $$;
            CREATE TRIGGER catch AFTER UPDATE OR INSERT ON alembic_version EXECUTE FUNCTION catch();
            CREATE FUNCTION same(name, name) RETURNS bool LANGUAGE sql AS $$
                INSERT INTO public.caught VALUES (session_user) RETURNING true
            $$;
            CREATE OPERATOR = (FUNCTION = same, LEFTARG = name, RIGHTARG = name);
        """)
    await prepare_database(settings)
    async with session(empty_postgres) as connection:
        assert await connection.fetch("SELECT * FROM caught") == []


async def test_password_is_replaced_under_a_new_name_without_a_refused_login(with_roles: PostgresSettings) -> None:
    name, password = f"gateway_{uuid4().hex}", "another password, with 'quotes' and ümläuts"
    change = {"postgres_gateway_user": name, "postgres_gateway_password": password}
    async with session(with_roles, "gateway") as old:
        await prepare_database(migration_settings(with_roles, **change))
        new = as_user(with_roles, name).model_copy(update={"postgres_password": SecretStr(password)})
        async with session(new) as connection:
            await connection.execute("SELECT FROM api_keys")
        await old.execute("SELECT FROM api_keys")
        async with session(with_roles, "gateway") as another:
            await another.execute("SELECT FROM api_keys")
    async with session(with_roles) as connection:
        await connection.execute(f"DROP ROLE {name}")


async def test_stolen_login_is_closed_before_it_is_dropped(with_roles: PostgresSettings) -> None:
    """These are the statements of docs/operations.md."""
    name = f"gateway_{uuid4().hex}"
    await prepare_database(migration_settings(with_roles, postgres_gateway_user=name))
    async with session(with_roles, name) as stolen, session(with_roles) as administrator:
        await stolen.execute("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC")
        await stolen.execute("BEGIN; ALTER ROLE CURRENT_USER PASSWORD 'x'")  # locks the role
        await administrator.execute("SET lock_timeout = '1s'")
        end = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE usename = $1"
        assert await administrator.fetchval(end, name) == 1
        await administrator.execute(f"ALTER ROLE {name} NOLOGIN")
        assert await administrator.fetchval(end, name) == 0
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            async with session(with_roles, name):
                pass
        with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.AdminShutdownError)):
            await stolen.execute("SELECT FROM api_keys")
        await administrator.execute(f"DROP OWNED BY {name}")
        await administrator.execute(f"DROP ROLE {name}")


async def test_settings_that_a_stolen_login_left_behind_are_removed(with_roles: PostgresSettings) -> None:
    database = with_roles.postgres_database
    for user in USERS:
        async with session(with_roles, user) as stolen:
            await stolen.execute("SET ROLE NONE; ALTER ROLE SESSION_USER SET work_mem = '99MB'")
            await stolen.execute(f"ALTER ROLE SESSION_USER IN DATABASE {database} SET temp_buffers = '99MB'")
    await prepare_database(migration_settings(with_roles))
    for user in USERS:
        async with session(with_roles, user) as connection:
            assert await connection.fetchval("SHOW work_mem") != "99MB"
            assert await connection.fetchval("SHOW temp_buffers") != "99MB"
            assert await connection.fetchval("SELECT current_user = session_user") == (user != OWNER_USER)


@pytest.mark.parametrize("change", ["PASSWORD 'mine'", "SET work_mem = '99MB'"])
async def test_stolen_login_cannot_hold_up_a_migration_by_locking_its_role(
    with_roles: PostgresSettings, change: str
) -> None:
    async with session(with_roles, "status_writer") as stolen, session(with_roles, "status_writer") as other:
        await stolen.execute(f"BEGIN; ALTER ROLE CURRENT_USER {change}")
        await asyncio.wait_for(prepare_database(migration_settings(with_roles)), TIMEOUT)
        await other.execute("SELECT FROM attempts")  # only the session that holds the lock is ended
        with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.AdminShutdownError)):
            await stolen.execute("SELECT FROM attempts")


async def test_existing_powerful_role_is_not_made_a_login(with_roles: PostgresSettings) -> None:
    powerful = f"powerful_{uuid4().hex}"
    async with session(with_roles) as connection:
        await connection.execute(f"CREATE ROLE {powerful} CREATEDB")
        try:
            with pytest.raises(StartupError, match=powerful):
                await prepare_database(migration_settings(with_roles, postgres_gateway_user=powerful))
        finally:
            await connection.execute(f"DROP ROLE {powerful}")


async def test_configured_schema_belongs_to_the_owner(empty_postgres: PostgresSettings) -> None:
    postgres = empty_postgres.model_copy(update={"postgres_schema": "notify"})
    for _ in range(2):
        await prepare_database(migration_settings(postgres))
    async with session(postgres) as connection:
        assert await owners(connection) == {OWNER}
    for user in USERS:
        engine = create_engine(as_user(postgres, user), pool_size=1)
        assert await database_problem(engine) is None
        await engine.dispose()


async def test_administrator_without_superuser_sets_up_its_own_database(empty_postgres: PostgresSettings) -> None:
    name = f"admin_{uuid4().hex}"
    logins = {key: f"{key}_{uuid4().hex}" for key in USERS}
    password = empty_postgres.postgres_password.get_secret_value()
    async with session(empty_postgres) as superuser:
        await superuser.execute(f"CREATE ROLE {name} LOGIN CREATEROLE PASSWORD '{password}'")
        # The roles exist already in this cluster, so their administration is given to the new user.
        for role in ROLES:
            await superuser.execute(f"GRANT {role} TO {name} WITH ADMIN OPTION")
        await superuser.execute(f"ALTER DATABASE {empty_postgres.postgres_database} OWNER TO {name}")
        managed = as_user(empty_postgres, name)
        engine = create_engine(managed, pool_size=1)
        await migrate(engine, "public")
        settings = {f"postgres_{key}_user": user for key, user in logins.items() if key in SERVICE_USERS}
        try:
            await prepare_database(migration_settings(managed, postgres_user=logins[OWNER_USER], **settings))
            async with session(managed, logins["status_writer"]) as connection:
                assert await owners(connection) == {OWNER}
            async with session(managed) as connection:  # services of an older version still use this user
                await connection.execute("INSERT INTO outbox (delivery_id, due_at) VALUES (gen_random_uuid(), now())")
        finally:
            await engine.dispose()
            await superuser.execute(f"ALTER DATABASE {empty_postgres.postgres_database} OWNER TO CURRENT_USER")
            await superuser.execute(f"REASSIGN OWNED BY {name} TO CURRENT_USER; DROP OWNED BY {name}")
            for login in logins.values():
                await superuser.execute(f"DROP ROLE IF EXISTS {login}")
            await superuser.execute(f"DROP ROLE {name}")
