"""A short version of `make fuzz`."""

from pathlib import Path

import pytest
from support.fuzzing import SETTINGS, fuzz
from support.processes import running_system
from support.servers import in_containers


@pytest.mark.timeout(300)
@pytest.mark.skipif(in_containers(), reason="requires the local stack's private servers")
def test_fuzzed_requests_get_only_documented_responses(tmp_path: Path) -> None:
    with running_system(tmp_path / "stack", SETTINGS) as system:
        assert fuzz(system, examples=15, seed=1, phases="examples,coverage,fuzzing,stateful") == 0
