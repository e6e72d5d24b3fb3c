"""Rules for the structure of the code: which imports are allowed, and how long files and functions may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest
from support.servers import PROJECT

SERVICES = {f"notify_{folder.name}" for folder in (PROJECT / "services").iterdir()}
SENDERS = sorted(service for service in SERVICES if service.endswith("_sender"))
LAYERS = (SERVICES | {"notify_client", "notify_local"}, "notify_database", "notify_common")
COMMON_LAYERS = ("sending", "rabbitmq", "runtime", {"contracts", "errors"})
GATEWAY_LAYERS = (
    "main",
    {"http_api", "cli"},
    "application",
    "legacy",
    {"health", "maintenance", "queue_members", "asyncapi"},
    "reconciliation",
    {"console", "dead_letters", "notifications"},
    {"deliveries", "events", "users"},
    {"api_keys", "outbox"},
    "http",
    "database",
    {"errors", "metrics", "settings", "slices", "stored_values"},
)
SUBJECTS = {
    "api_keys", "console", "dead_letters", "deliveries", "events", "notifications", "outbox", "reconciliation", "users",
}  # fmt: skip
HTTP_LAYER = {"routes", "endpoint"}
LONGEST_FILE, LONGEST_FUNCTION = 300, 50  # lines


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    packages = ["notify_client", "notify_common", "notify_database", "notify_local", *SERVICES]
    return grimp.build_graph(*packages, include_external_packages=True, cache_dir=None)


def test_services_import_libraries_but_not_each_other(imports: grimp.ImportGraph) -> None:
    assert imports.find_illegal_dependencies_for_layers(LAYERS) == set()


def test_client_imports_nothing_of_the_service(imports: grimp.ImportGraph) -> None:
    for forbidden in ("notify_common", "notify_database", "notify_local", *SERVICES):
        assert imports.find_shortest_chains("notify_client", forbidden) == set()


def test_client_without_its_command_needs_neither_typer_nor_rich(imports: grimp.ImportGraph) -> None:
    command = {"notify_client.cli", *imports.find_descendants("notify_client.cli"), "notify_client.outbox.__main__"}
    library = {"notify_client", *imports.find_descendants("notify_client")} - command
    for optional in ("typer", "rich"):
        assert not imports.find_modules_that_directly_import(optional) & library
    for module in command:
        assert not imports.find_modules_that_directly_import(module) & library
    # httpx imports rich if it is there.
    code = "import sys, notify_client; sys.exit('typer' in sys.modules or 'notify_client.cli' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # noqa: S603 - ours


def test_common_library_packages_import_only_lower_layers(imports: grimp.ImportGraph) -> None:
    assert imports.find_illegal_dependencies_for_layers(COMMON_LAYERS, containers={"notify_common"}) == set()


def test_gateway_packages_import_only_lower_layers(imports: grimp.ImportGraph) -> None:
    assert imports.find_illegal_dependencies_for_layers(GATEWAY_LAYERS, containers={"notify_gateway"}) == set()


def test_every_gateway_module_is_in_a_layer() -> None:
    package = PROJECT / "services/gateway/src/notify_gateway"
    in_layers = {name for layer in GATEWAY_LAYERS for name in ({layer} if isinstance(layer, str) else layer)}
    assert {path.stem for path in package.iterdir() if not path.stem.startswith("__")} == in_layers


def test_no_subject_imports_another_subjects_routes(imports: grimp.ImportGraph) -> None:
    for importer in imports.modules:
        for imported in imports.find_modules_directly_imported_by(importer):
            package, _, module = imported.rpartition(".")
            subject = package.removeprefix("notify_gateway.")
            if subject in SUBJECTS and module in HTTP_LAYER and importer.split(".")[1] in SUBJECTS:
                assert importer.startswith(f"{package}."), f"{importer} imports {imported}"


def test_there_are_no_import_cycles(imports: grimp.ImportGraph) -> None:
    # The call to prepare() raises CycleError if there is a cycle.
    TopologicalSorter(
        {module: imports.find_modules_directly_imported_by(module) for module in imports.modules}
    ).prepare()


@pytest.mark.parametrize("package", ["notify_common", *SENDERS])
def test_senders_import_neither_the_database_nor_fastapi(imports: grimp.ImportGraph, package: str) -> None:
    for forbidden in ("notify_database", "sqlalchemy", "asyncpg", "alembic", "fastapi"):
        assert imports.find_shortest_chains(package, forbidden) == set()


def test_importing_contracts_loads_no_server_or_driver() -> None:
    code = (
        "import sys, notify_common.contracts.channels, notify_common.contracts.ids, notify_common.contracts.messages\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 - constant
    assert not {"uvicorn", "fastapi", "starlette", "faststream", "aio_pika", "asyncpg"}.intersection(
        found.stdout.split()
    )


def _sources() -> Iterator[Path]:
    for folder in ("clients", "libs", "services", "benchmarks"):
        for path in (PROJECT / folder).rglob("*.py"):
            if ".venv" not in path.parts:
                yield path


def test_no_file_or_function_is_too_long() -> None:
    too_long = []
    for path in _sources():
        source = path.read_text()
        if source.count("\n") > LONGEST_FILE:
            too_long.append(str(path))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION:
                    too_long.append(f"{path}: {node.name}")
    assert too_long == []
