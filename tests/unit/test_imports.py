"""Who may import whom."""

import grimp
import pytest
from support.servers import PROJECT

SERVICES = {f"notify_{folder.name}" for folder in (PROJECT / "services").iterdir()}
SENDERS = sorted(service for service in SERVICES if service.endswith("_sender"))
LAYERS = (SERVICES | {"notify_local"}, "notify_database", "notify_common")


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    packages = ["notify_common", "notify_database", "notify_local", *SERVICES]
    return grimp.build_graph(*packages, include_external_packages=True, cache_dir=None)


def test_services_stand_on_libraries_and_never_import_each_other(imports: grimp.ImportGraph) -> None:
    assert imports.find_illegal_dependencies_for_layers(LAYERS) == set()


@pytest.mark.parametrize("package", ["notify_common", *SENDERS])
def test_senders_and_what_they_share_can_not_reach_the_database_or_fastapi(
    imports: grimp.ImportGraph, package: str
) -> None:
    for forbidden in ("notify_database", "sqlalchemy", "asyncpg", "alembic", "fastapi"):
        assert imports.find_shortest_chains(package, forbidden) == set()
