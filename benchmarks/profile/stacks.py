"""Sampled stacks, and the areas of the code in which the samples lie. This module needs no servers."""

import re
from collections import Counter
from collections.abc import Mapping

Stack = tuple[str, ...]
"""Frames as `function (file)`, the outermost first."""
Stacks = Mapping[Stack, int]
"""The number of samples of each stack."""

AREAS: dict[str, tuple[str, ...]] = {
    # Our transport only passes responses on, so the time in it is that of the system calls.
    "HTTP server (uvicorn, httptools)": ("uvicorn/", "httptools/", "notify_gateway/http/closing.py"),
    "FastAPI, Starlette": ("fastapi/", "starlette/"),
    "validation, JSON (pydantic)": ("pydantic/", "pydantic_core/"),
    "SQLAlchemy": ("sqlalchemy/",),
    "asyncpg": ("asyncpg/",),
    "AMQP (aiormq, pamqp, aio-pika)": ("aiormq/", "pamqp/", "aio_pika/"),
    "FastStream": ("faststream/", "fast_depends/"),
    "metrics, logs, traces": (
        "prometheus_client/", "opentelemetry/", "structlog/", "logging/", "notify_gateway/metrics.py",
        "notify_common/sending/metrics.py", "notify_status_writer/metrics.py", "notify_common/runtime/metrics.py",
        "notify_common/runtime/tracing.py", "notify_common/runtime/logging.py",
    ),
    "ours: HTTP limits": ("notify_gateway/http/",),
    "ours: routes and endpoints": (
        "notify_gateway/http_api.py", "notify_gateway/notifications/", "notify_gateway/legacy/",
        "notify_gateway/deliveries/", "notify_gateway/console/",
    ),
    "ours: intake": (
        "notify_gateway/notifications/intake.py", "notify_gateway/notifications/new_notification.py",
        "notify_gateway/notifications/idempotency.py", "notify_gateway/users/",
    ),
    "ours: outbox relay": ("notify_gateway/outbox/",),
    "ours: events": ("notify_gateway/events/", "notify_common/rabbitmq/events.py"),
    "ours: sender": ("notify_common/sending/", "notify_telegram_sender/"),
    "ours: result writer": ("notify_status_writer/",),
    "ours: messages and ids": ("notify_common/contracts/",),
    "ours: publisher and consumer": ("notify_common/rabbitmq/",),
    "ours: batcher": (
        "notify_common/runtime/batcher.py", "notify_common/runtime/waiting_queue.py",
        "notify_common/runtime/batch_interval.py",
    ),
    "ours: database access": ("notify_database/", "notify_gateway/database.py"),
    "ours: other": ("notify_",),
    # It is at the bottom of nearly all stacks, so only what nothing else claims is the loop's own time.
    "event loop (uvloop)": ("asyncio/runners.py",),
}  # fmt: skip
OTHER = "other"
_AREA_BY_PREFIX = {prefix: area for area, prefixes in AREAS.items() for prefix in prefixes}
# Entry points are part of every stack below them, as the event loop is.
_ENTRY = re.compile(r"^notify_\w+/(?:__main__|main|sending/service|runtime/process)\.py$")
_FILE = re.compile(r"\(([^()]*)\)$")
_LINE = re.compile(r":\d+\)$")
# py-spy takes a thread that waits in `select` for a running one.
_IDLE = "select (selectors.py)"
_LOOP = "asyncio/runners.py"


def parse(text: str) -> Counter[Stack]:
    """Return the stacks in a profile in py-spy's raw format, without those of threads that only wait."""
    stacks: Counter[Stack] = Counter()
    for line in text.splitlines():
        frames, _, count = line.rpartition(" ")
        stack = tuple(_LINE.sub(")", frame) for frame in frames.split(";")) if frames else ()
        if not (stack and stack[-1] == _IDLE):
            stacks[stack] += int(count)
    return stacks


def area(stack: Stack) -> str:
    """Return the area of the innermost frame that belongs to one; the standard library's frames belong to callers."""
    return next((found for frame in reversed(stack) if (found := frame_area(frame))), OTHER)


def frame_area(frame: str) -> str | None:
    """Return the area of a frame, which is the one with the longest matching prefix; None if there is none."""
    matched = _FILE.search(frame)
    file = matched.group(1) if matched else ""
    if _ENTRY.search(file):
        return None
    prefixes = [prefix for prefix in _AREA_BY_PREFIX if file.startswith(prefix)]
    return _AREA_BY_PREFIX[max(prefixes, key=len)] if prefixes else None


def shares(stacks: Stacks) -> dict[str, float]:
    """Return the fraction of the samples in each area, in descending order."""
    counts: Counter[str] = Counter()
    for stack, count in stacks.items():
        counts[area(stack)] += count
    return {name: count / counts.total() for name, count in counts.most_common()}


def above_the_loop(stack: Stack) -> Stack:
    """Return a stack without the frames that start the event loop, which are the same in all stacks."""
    loops = [number for number, frame in enumerate(stack) if f"({_LOOP})" in frame]
    return stack[loops[-1] + 1 :] if loops else stack
