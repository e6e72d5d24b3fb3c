"""Create the roles and the logins, and hand the tables over to their owner.

An administrator's login does this, and nothing else. It looks up names only in `pg_catalog` and never reads a table,
because code that the owner has put there, such as a trigger, would run with the administrator's rights.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from notify_common.errors import StartupError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from notify_database.migration_locks import become_the_only_migrator, limit_lock_waits, repeat_after_lock_conflicts
from notify_database.partitions import STORAGE
from notify_database.rights import GATEWAY, OWNER, ROLES, STATUS_WRITER, TABLES
from notify_database.scram import scram_verifier

log = logging.getLogger(__name__)

ME = text("SELECT rolsuper, rolcreaterole FROM pg_roles WHERE rolname = current_user")
FOUND = text("""
    SELECT rolname, rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls AS powerful
    FROM pg_roles WHERE rolname = ANY(CAST(:names AS text[]))
""")
# Each login may change its own password and settings. A stolen one could do so in a transaction that it never ends, and
# so lock its role, which would hold up this process for good. No service changes its role, so such sessions are ended.
END_CHANGES = text("""
    SELECT count(pg_terminate_backend(pid, :wait)) FROM (
        SELECT DISTINCT pid FROM pg_stat_activity JOIN pg_locks USING (pid)
        WHERE usename = ANY(CAST(:users AS text[])) AND mode = 'RowExclusiveLock'
          AND relation = ANY(ARRAY['pg_authid'::regclass, 'pg_db_role_setting'::regclass])
    ) AS changing
""")
END_TIMEOUT = 1  # seconds that a session is given to end
INHERITS_OWNER = text("SELECT pg_has_role(current_user, :owner, 'USAGE')")
DATABASE = text("SELECT quote_ident(current_database())")
OPEN_DATABASES = text("""
    SELECT datname FROM pg_database
    WHERE datname IN ('postgres', 'template1')
        AND (has_database_privilege('public', oid, 'CONNECT') OR has_database_privilege('public', oid, 'TEMPORARY'))
""")
# A partition does not inherit the owner of its table. Versions without roles create partitions as their own user.
NOT_HANDED_OVER = text("""
    SELECT relname FROM pg_class
    WHERE relnamespace = to_regnamespace(:schema) AND relkind IN ('r', 'p') AND relowner <> to_regrole(:owner)
      AND (relname = ANY(CAST(:tables AS text[])) OR relname ~ :partition)
    ORDER BY relkind DESC, relname
""")
PARTITION = f"^({'|'.join(STORAGE)})_until_[0-9]{{8}}$"
# The percentage of the server's connections that each login may use, so that a stolen one does not keep others out. The
# rest is for the administrator and monitoring.
CONNECTION_SHARES = {GATEWAY: 70, STATUS_WRITER: 18, OWNER: 10}
CONNECTIONS = text("""
    SELECT sum(setting::int * CASE name WHEN 'max_connections' THEN 1 ELSE -1 END) FROM pg_settings
    WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections')
""")
# By default, everybody may call these functions. Advisory locks could stop migrations and maintenance for good, and
# nothing here uses large objects.
ADVISORY_LOCKS, LARGE_OBJECTS = "^pg_(try_)?advisory_", "^lo_(creat|create|from_bytea)$"
FUNCTIONS = text("""
    SELECT string_agg(oid::regprocedure::text, ', ') FROM pg_proc
    WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ :pattern
""")


@dataclass(frozen=True, slots=True)
class Login:
    """A user name and a password that a service logs in with. It has the rights of `role`, and no others."""

    user: str
    password: str
    role: str


async def set_up_roles(engine: AsyncEngine, schema: str, logins: Sequence[Login]) -> None:
    """Bring the roles, the rights to the database and the tables' owner up to date; services keep working.

    The engine's user needs the attributes SUPERUSER or CREATEROLE; without SUPERUSER, it must also own the database
    and the tables.
    """
    async with engine.connect() as connection:
        try:
            await become_the_only_migrator(connection)
            await connection.run_sync(limit_lock_waits)
            problem = "the roles cannot be set up yet, because a session has locked one of them"
            await repeat_after_lock_conflicts(connection, partial(_set_up, connection, schema, logins), problem)
            await _hand_over(connection, schema)
        finally:
            await connection.invalidate()


async def _set_up(connection: AsyncConnection, schema: str, logins: Sequence[Login]) -> None:
    is_superuser, may_create = (await connection.execute(ME)).one()
    if not (is_superuser or may_create):
        raise StartupError("POSTGRES_ADMIN_USER: must have the attribute SUPERUSER or CREATEROLE")
    if is_superuser:
        users = [login.user for login in logins]
        await connection.execute(END_CHANGES, {"users": users, "wait": END_TIMEOUT * 1000})
    await _create_roles(connection)
    for login in logins:
        await _set_up_login(connection, login)
    if not is_superuser and not (await connection.execute(INHERITS_OWNER, {"owner": OWNER})).scalar_one():
        # Services that still log in as this user keep their rights to the tables that are handed over.
        await connection.execute(text(f"GRANT {OWNER} TO CURRENT_USER"))
    await _close_database(connection, schema)
    if is_superuser:
        await _close_functions(connection)
        await _close_other_databases(connection)
    await connection.commit()


async def _create_roles(connection: AsyncConnection) -> None:
    found = {row.rolname for row in await connection.execute(FOUND, {"names": list(ROLES)})}
    for role in ROLES:
        if role not in found:
            await connection.execute(text(f"CREATE ROLE {role} NOLOGIN"))


async def _set_up_login(connection: AsyncConnection, login: Login) -> None:
    """Create the login, or set its password, connection limit and settings; connections that exist keep working."""
    found = (await connection.execute(FOUND, {"names": [login.user]})).one_or_none()
    if found is not None and found.powerful:
        raise StartupError(f"the PostgreSQL role {login.user} has rights that no service should have; use another name")
    verb = "CREATE" if found is None else "ALTER"
    # The server's log must not contain the password, so only its verifier is sent.
    password = scram_verifier(login.password)
    connections = (await connection.execute(CONNECTIONS)).scalar_one()
    limit = max(1, connections * CONNECTION_SHARES[login.role] // 100)
    await connection.exec_driver_sql(
        f"{verb} ROLE \"{login.user}\" LOGIN INHERIT CONNECTION LIMIT {limit} PASSWORD '{password}'"
    )
    # A stolen login can change its own settings, which would outlast the change of its password.
    database = (await connection.execute(DATABASE)).scalar_one()
    for scope in ("", f"IN DATABASE {database}"):
        await connection.exec_driver_sql(f'ALTER ROLE "{login.user}" {scope} RESET ALL')
    await connection.execute(text(f'GRANT {login.role} TO "{login.user}"'))
    if login.role == OWNER:
        # Tables then belong to the role, whichever login creates them.
        await connection.execute(text(f'ALTER ROLE "{login.user}" SET role TO {OWNER}'))


async def _close_database(connection: AsyncConnection, schema: str) -> None:
    """Let only our roles connect to the database and use the schema, and only the owner create anything in it."""
    database = (await connection.execute(DATABASE)).scalar_one()
    roles = ", ".join(ROLES)
    for statement in (
        f"REVOKE ALL ON DATABASE {database} FROM PUBLIC, {roles}",
        f"GRANT CONNECT ON DATABASE {database} TO {roles}",
        f'CREATE SCHEMA IF NOT EXISTS "{schema}"',
        f'REVOKE ALL ON SCHEMA "{schema}" FROM PUBLIC, {roles}',
        f'GRANT USAGE ON SCHEMA "{schema}" TO {roles}',
        f'GRANT CREATE ON SCHEMA "{schema}" TO {OWNER}',
    ):
        await connection.exec_driver_sql(statement)


async def _close_functions(connection: AsyncConnection) -> None:
    for pattern in (ADVISORY_LOCKS, LARGE_OBJECTS):
        functions = (await connection.execute(FUNCTIONS, {"pattern": pattern})).scalar_one()
        await connection.exec_driver_sql(f"REVOKE EXECUTE ON FUNCTION {functions} FROM PUBLIC")
        if pattern == ADVISORY_LOCKS:
            await connection.exec_driver_sql(f"GRANT EXECUTE ON FUNCTION {functions} TO {OWNER}")


async def _close_other_databases(connection: AsyncConnection) -> None:
    """Let only administrators connect to the databases that every cluster has, in which functions are still open."""
    for database in (await connection.execute(OPEN_DATABASES)).scalars().all():
        await connection.exec_driver_sql(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")


async def _hand_over(connection: AsyncConnection, schema: str) -> None:
    """Make the owner the owner of all tables, one transaction each, with short waits for locks."""
    tables = [*TABLES, "alembic_version"]
    values = {"schema": schema, "owner": OWNER, "tables": tables, "partition": PARTITION}
    names = (await connection.execute(NOT_HANDED_OVER, values)).scalars().all()
    await connection.commit()

    async def hand_over(name: str) -> None:
        await connection.execute(text(f'ALTER TABLE IF EXISTS "{schema}"."{name}" OWNER TO {OWNER}'))
        await connection.commit()

    for name in names:
        problem = "a table cannot be handed over to its owner yet, because it is locked"
        await repeat_after_lock_conflicts(connection, partial(hand_over, name), problem)
    if names:
        log.info("tables were handed over to their owner", extra={"tables": len(names), "owner": OWNER})
