"""How long simulated calls take, on a virtual clock."""

import asyncio

import pytest
from notify_common.contracts.messages import DeliveryRequested
from notify_common.sending.provider import Provider
from notify_common.sending.service import SenderSettings
from notify_common.sending.simulator import TIMES_OUT_AFTER
from support.fakes import FakeProvider
from support.services import delivery_requested
from support.virtual_clock import run_virtually

LATENCY = 0.2  # seconds


def duration(recipient: str, *, test: bool, real: Provider | None) -> float:
    """Return how many seconds a call takes, with a `real` provider or in a simulated system."""

    async def main() -> float:
        settings = SenderSettings.model_validate({"health_port": 8081, "error_probability": 0})
        provider = settings.with_simulation(real, latency=LATENCY)
        request = DeliveryRequested.model_validate_json(delivery_requested(recipient=recipient, test=test).body())
        call = asyncio.create_task(provider.send(request))
        await asyncio.wait({call})
        assert isinstance(call.exception(), TimeoutError | None)
        return asyncio.get_running_loop().time()

    return run_virtually(main())


@pytest.mark.parametrize("recipient", ["123456789", "@simulator_timeout", "@simulator_delivered"])
def test_simulated_calls_take_no_time_beside_a_real_provider(recipient: str) -> None:
    provider = FakeProvider()
    assert duration(recipient, test=True, real=provider) == 0
    assert provider.calls == []


@pytest.mark.parametrize(
    ("recipient", "seconds"),
    [("123456789", LATENCY), ("@simulator_timeout", TIMES_OUT_AFTER), ("@simulator_delivered", 0)],
)
@pytest.mark.parametrize("test", [True, False])
def test_calls_of_a_simulated_system_take_time(recipient: str, seconds: float, test: bool) -> None:
    assert duration(recipient, test=test, real=None) == seconds
