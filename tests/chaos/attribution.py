"""Attribute second sends to faults: decide which fault may have interrupted a delivery at which moment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from notify_common.runtime.outage import JITTER, LONGEST_WAIT

from chaos.faults import MAIL_SERVER_DOWN, QUEUE_STOPPED
from chaos.scene import Fault

# The longest time from a provider's acceptance to the ack of the message; a busy or freshly started process is slow.
IN_FLIGHT = 5.0  # seconds
# The system counts as recovered once one sender has reconnected; the other senders may take this much longer.
RECONNECTED = LONGEST_WAIT * (1 + JITTER) + 1  # seconds
# If a gateway is paused after it has published a delivery, the delivery is sent within this time. If it is sent only
# later, another gateway has taken it, and then the paused one must not publish it any more.
PUBLISHED = 2 * IN_FLIGHT  # seconds


@dataclass(frozen=True)
class Sent:
    """A line in a ledger; `pid` and `attempt` are 0 if a mail server wrote it, because a mail server knows neither."""

    at: float
    pid: int
    attempt: int

    def sender_killed_by(self, fault: Fault) -> bool:
        """Return True if the fault killed the sender, or, if `pid` is 0 (unknown), any e-mail sender."""
        return self._is_one_of(fault.killed)

    def sender_paused_by(self, fault: Fault) -> bool:
        """Return True if the fault paused the sender, or, if `pid` is 0 (unknown), any e-mail sender."""
        return self._is_one_of(fault.paused)

    def _is_one_of(self, processes: Mapping[int, str]) -> bool:
        if self.pid:
            return self.pid in processes
        return any(name.startswith("email_sender") for name in processes.values())


def explains(fault: Fault, sent: Sent, sends: Sequence[Sent], accepted_at: float, waits: Sequence[float]) -> bool:
    """Return True if the fault may have caused a second send after `sent`, which is one of the delivery's `sends`.

    It may have interrupted this send or an earlier publish of its message.
    """
    if "rabbitmq" in fault.killed.values() or fault.of_broker_node or fault.name == QUEUE_STOPPED:
        # If RabbitMQ dies before it has recorded a move out of a retry queue, it repeats the move after its restart.
        # It also repeats a move that the target queue has not confirmed in time.
        back = fault.ended + fault.recovered_after + IN_FLIGHT
        if any(fault.began - IN_FLIGHT <= wait <= back for wait in waits):
            return True
    cut_from_provider = fault.name == MAIL_SERVER_DOWN and sent.pid == 0
    if fault.cuts_all or sent.sender_killed_by(fault) or cut_from_provider:
        return _in_flight(fault, sent)
    if _in_flight(fault, sent) and any(each.sender_paused_by(fault) and _in_flight(fault, each) for each in sends):
        # The sender was paused during its attempt. RabbitMQ closed its connection and gave the delivery to another.
        return True
    if fault.of_database:
        # The relay could not delete the rows of what it had published. If that lasts longer than their leases, another
        # relay publishes those deliveries again.
        return accepted_at <= fault.ended and _in_flight(fault, sent)
    if any(name.startswith("gateway") for name in fault.paused.values()):
        # The gateway was paused after the publish and before it deleted the row, which was published again once its
        # lease had ended. A row that was not yet published must be left to the gateway that has taken it.
        return accepted_at <= fault.began + IN_FLIGHT and -IN_FLIGHT <= sent.at - fault.began <= PUBLISHED
    # If a gateway dies between publishing and deleting an outbox row, the row is published again once its lease ends.
    gateway_died = any(name.startswith("gateway") for name in fault.killed.values())
    return gateway_died and accepted_at <= fault.ended and sent.at >= fault.began - IN_FLIGHT


def ran_again(fault: Fault, sent: Sent, channel: str, accepted_at: float) -> bool:
    """Return True if an interrupted sender may have published a retry of a failed attempt but not acked it.

    RabbitMQ then gave the message to another sender, which made the failed attempt again: `sent`.
    """
    if fault.cuts_all:
        back = fault.ended + fault.recovered_after + RECONNECTED
        return accepted_at <= fault.ended and fault.began - IN_FLIGHT <= sent.at <= back + IN_FLIGHT
    interrupted = [*fault.killed.values(), *fault.paused.values()]
    return any(name.startswith(f"{channel}_sender") for name in interrupted) and _in_flight(fault, sent)


def _in_flight(fault: Fault, sent: Sent) -> bool:
    return fault.began - IN_FLIGHT <= sent.at <= fault.ended + IN_FLIGHT


def result_unpublished(sent: Sent, kill: Fault, faults: Sequence[Fault]) -> bool:
    """Return True if `kill` may have ended the sender before it published the result.

    Either the send was still in flight, or a RabbitMQ outage was delaying the result.
    """
    cuts = (fault for fault in faults if fault.cuts_all and _in_flight(fault, sent))
    return _in_flight(kill, sent) or any(
        sent.at - IN_FLIGHT <= kill.began <= cut.ended + cut.recovered_after + RECONNECTED for cut in cuts
    )
