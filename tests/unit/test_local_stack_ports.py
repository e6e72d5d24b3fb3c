from notify_local.ports import Ports


def test_stacks_that_start_together_get_different_ports() -> None:
    # The first stack does not listen on its ports yet.
    first, second = Ports().free(24_000), Ports().free(24_000)
    assert first != second
