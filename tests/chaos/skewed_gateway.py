"""`python -m chaos.skewed_gateway SECONDS`: run a gateway whose clock is ahead by SECONDS, or behind if negative."""

import runpy
import sys
import time
from datetime import datetime, timedelta, tzinfo

from notify_common.runtime import clock
from typing_extensions import override


def skew(shift: timedelta) -> None:
    """Shift this process's wall clock: everything that it reads from `clock` and `time.time`."""

    class SkewedDatetime(datetime):
        @override
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + shift

    true_time = time.time
    vars(clock)["datetime"] = SkewedDatetime
    time.time = lambda: true_time() + shift.total_seconds()


if __name__ == "__main__":
    skew(timedelta(seconds=float(sys.argv.pop(1))))
    runpy.run_module("notify_gateway", run_name="__main__")
