from dataclasses import astuple

import pytest
from notify_gateway.database import PoolSizes


@pytest.mark.parametrize("total", range(5, 31))
def test_pools_never_take_more_connections_than_configured_and_none_is_empty(total: int) -> None:
    sizes = PoolSizes.of(total)
    assert sum(astuple(sizes)) == total
    assert min(astuple(sizes)) >= 1


def test_each_pool_that_others_wait_for_has_a_spare_connection_by_default() -> None:
    assert PoolSizes.of(10) == PoolSizes(relay=2, maintenance=1, control=2, intake=2, reads=3)
