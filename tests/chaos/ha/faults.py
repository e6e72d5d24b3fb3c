"""The faults of a run in a cluster, by name, and how often each run injects them."""

import time
from dataclasses import dataclass

from chaos.ha import broker_faults, database_faults, joint_faults
from chaos.ha.scene import Act, HaScene
from chaos.scene import Fault

EMPTY_BROKER = "a broker comes back empty"
AHEAD = "the primary is lost while ahead"
PRIMARY_KILLED = "kill -9 PostgreSQL's primary"
PRIMARY_DOWN = "the primary's machine is down"


@dataclass(frozen=True)
class Kind:
    """A fault, and what it does to connections and transactions."""

    act: Act
    times: int
    """How often a full run injects it; three times means each node in turn."""
    of_broker_node: bool = False
    of_database: bool = False


FAULTS = {
    "kill -9 a broker": Kind(broker_faults.killing(1), 3, of_broker_node=True),
    "freeze a broker": Kind(broker_faults.freezing(1), 3, of_broker_node=True),
    "cut off a broker": Kind(broker_faults.cut_off, 3, of_broker_node=True),
    "kill -9 two brokers": Kind(broker_faults.killing(2), 1, of_broker_node=True),
    "freeze two brokers": Kind(broker_faults.freezing(2), 1, of_broker_node=True),
    "restart all brokers in turn": Kind(broker_faults.restart_in_turn, 1, of_broker_node=True),
    EMPTY_BROKER: Kind(broker_faults.come_back_empty, 2, of_broker_node=True),
    PRIMARY_KILLED: Kind(database_faults.kill_primary, 2, of_database=True),
    PRIMARY_DOWN: Kind(database_faults.down_until_replaced, 1, of_database=True),
    "freeze the primary's machine": Kind(database_faults.freezing(primary=True, standbys=0), 1, of_database=True),
    "kill -9 two database machines": Kind(database_faults.killing(primary=True, standbys=1), 1, of_database=True),
    "freeze two database machines": Kind(database_faults.freezing(primary=True, standbys=1), 1, of_database=True),
    "kill -9 both standbys' machines": Kind(database_faults.killing(primary=False, standbys=2), 1, of_database=True),
    "restart all database machines in turn": Kind(database_faults.restart_in_turn, 1, of_database=True),
    "a standby comes back empty": Kind(database_faults.standby_comes_back_empty, 1, of_database=True),
    AHEAD: Kind(database_faults.lose_primary_ahead_of_standbys, 1, of_database=True),
    "kill -9 a broker and the primary's machine": Kind(joint_faults.kill, 1, of_broker_node=True, of_database=True),
    "freeze a broker and the primary's machine": Kind(joint_faults.freeze, 1, of_broker_node=True, of_database=True),
}
SHORT = (
    "kill -9 a broker", PRIMARY_KILLED, "freeze a broker", "kill -9 two brokers", "kill -9 two database machines",
    EMPTY_BROKER,
)  # fmt: skip


def full_series() -> list[str]:
    """Return the faults of a full run. Those of both clusters alternate, and equal ones are far apart."""
    left = {name: kind.times for name, kind in FAULTS.items()}
    names = []
    while left:
        names += [name for of_database in (False, True) for name in left if FAULTS[name].of_database is of_database]
        left = {name: times - 1 for name, times in left.items() if times > 1}
    return names


async def inject(scene: HaScene, name: str) -> Fault:
    """Inject a fault, and return when both clusters are complete again."""
    kind = FAULTS[name]
    fault = Fault(name, time.time(), cuts_all=kind.of_broker_node)
    fault.of_broker_node, fault.of_database = kind.of_broker_node, kind.of_database
    await kind.act(scene, fault)
    fault.ended = time.time()
    return fault
