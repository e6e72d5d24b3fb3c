from notify_local.ports import Ports


def test_stacks_that_start_together_get_different_ports() -> None:
    # Nothing listens yet where the first one will.
    first, second = Ports().free(24_000), Ports().free(24_000)
    assert first != second
