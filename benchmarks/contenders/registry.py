"""All contenders, this service first."""

from benchmarks.contenders.background_tasks import BACKGROUND_TASKS
from benchmarks.contenders.bare import BARE
from benchmarks.contenders.bare_strong import BARE_STRONG
from benchmarks.contenders.celery import CELERY
from benchmarks.contenders.contender import Contender
from benchmarks.contenders.faststream import FASTSTREAM
from benchmarks.contenders.node import NODE
from benchmarks.contenders.pgqueuer import PGQUEUER
from benchmarks.contenders.service import SERVICE, SERVICE_WITH_KEYS, as_compared
from benchmarks.contenders.taskiq import TASKIQ

CONTENDERS = (
    as_compared(SERVICE), as_compared(SERVICE_WITH_KEYS), BACKGROUND_TASKS, CELERY, BARE, BARE_STRONG, FASTSTREAM,
    TASKIQ, PGQUEUER, NODE,
)  # fmt: skip


def contender(key: str) -> Contender:
    """Return the contender, or the variant of one, with this key."""
    return next(each for each in selectable() if each.key == key)


def selectable() -> list[Contender]:
    """Return everything that `--only` can name."""
    return [each for one in CONTENDERS for each in (one, *one.variants)]
