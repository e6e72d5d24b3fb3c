from notify_local.ports import Ports


def test_two_stacks_that_start_together_never_get_the_same_port() -> None:
    # Nothing listens yet where the first one will.
    first, second = Ports().free(24_000), Ports().free(24_000)
    assert first != second
