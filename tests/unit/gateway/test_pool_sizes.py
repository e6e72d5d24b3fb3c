from dataclasses import astuple

import pytest
from notify_gateway.database import PoolSizes


@pytest.mark.parametrize("total", range(5, 31))
def test_pools_never_take_more_connections_than_configured_and_none_is_empty(total: int) -> None:
    sizes = PoolSizes.of(total)
    assert sum(astuple(sizes)) == total
    assert min(astuple(sizes)) >= 1


def test_default_number_of_connections_leaves_most_to_reads() -> None:
    assert PoolSizes.of(10) == PoolSizes(relay=1, maintenance=1, control=2, intake=2, reads=4)
