from notify_local.ports import Ports


def test_stacks_that_start_together_get_different_ports() -> None:
    # The second call must skip the ports of the first stack, although nothing is listening on them yet.
    first, second = Ports().free(24_000), Ports().free(24_000)
    assert first != second
