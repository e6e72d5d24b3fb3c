"""The judgements of `make chaos`: what a fault explains, what is stranded, and whether a burst was paced."""

from uuid import uuid4

from chaos.attribution import Sent, explains, ran_again
from chaos.audit import Report, check_open
from chaos.faults import FAULTS, fault_names
from chaos.memory import memory_complaints
from chaos.pacing import PER_RECIPIENT, Burst, Paced
from chaos.scene import PAUSE, Fault

BEGAN = 1000.0
PAUSED, OTHER = 11, 12  # process ids


def paused(program: str) -> Fault:
    return Fault("pause", BEGAN, cuts_all=False, paused={PAUSED: program}, ended=BEGAN + PAUSE)


def test_pause_of_a_sender_explains_second_sends_of_what_it_had_in_flight() -> None:
    fault = paused("email_sender-2")
    before, taken_over, resumed = (
        Sent(BEGAN - 0.1, PAUSED, 1),
        Sent(BEGAN + 30, OTHER, 1),
        Sent(BEGAN + 40.1, PAUSED, 1),
    )
    assert explains(fault, before, [before, taken_over], BEGAN - 1, [])
    assert explains(fault, taken_over, [taken_over, resumed], BEGAN - 1, [])


def test_pause_of_a_sender_explains_no_second_send_of_other_senders() -> None:
    first, second = Sent(BEGAN + 10, OTHER, 1), Sent(BEGAN + 11, OTHER, 1)
    assert not explains(paused("email_sender"), first, [first, second], BEGAN, [])


def test_pause_of_a_sender_explains_a_repeated_retry_of_its_own_channel_only() -> None:
    earlier = Sent(BEGAN + 30, OTHER, 1)
    assert ran_again(paused("email_sender"), earlier, "email", BEGAN)
    assert not ran_again(paused("email_sender"), earlier, "webhook", BEGAN)


def test_lost_connection_explains_that_a_failed_attempt_is_made_again_before_all_have_reconnected() -> None:
    fault = Fault("RabbitMQ killed", BEGAN, cuts_all=True, ended=BEGAN + 1, recovered_after=20)
    assert ran_again(fault, Sent(BEGAN + 22, OTHER, 1), "email", BEGAN)
    assert not ran_again(fault, Sent(BEGAN + 60, OTHER, 1), "email", BEGAN)
    assert not ran_again(fault, Sent(BEGAN + 22, OTHER, 1), "email", BEGAN + 10)  # it was accepted afterwards


def test_pause_of_a_gateway_explains_only_what_it_had_published_before() -> None:
    fault, accepted_at = paused("gateway"), BEGAN - 0.1
    published_before, published_by_another = Sent(BEGAN + 0.5, OTHER, 1), Sent(BEGAN + 30.5, OTHER, 1)
    assert explains(fault, published_before, [published_before, published_by_another], accepted_at, [])
    # The other gateway has taken the row after its lease; the paused one must not publish it any more.
    again = Sent(BEGAN + 40.5, OTHER, 1)
    assert not explains(fault, published_by_another, [published_by_another, again], accepted_at, [])


def test_open_delivery_is_stranded_only_if_neither_the_outbox_nor_a_queue_has_it() -> None:
    stranded, waiting = uuid4(), uuid4()
    report = Report()
    check_open(report, [stranded, waiting], {waiting}, {"notifications.dead": 1})
    assert (report.stranded, report.clean) == (1, False)
    report = Report()
    check_open(report, [stranded], set(), {"notifications.email.retry.1000": 1})
    assert (report.stranded, report.clean) == (0, False)
    report = Report()
    check_open(report, [], set(), {})
    assert report.clean


def test_pauses_are_left_out_of_short_runs_and_the_mail_server_of_simulated_ones() -> None:
    assert set(fault_names(smtp=True, pauses=True)) == set(FAULTS)
    assert not any(name.startswith(("pause", "mail")) for name in fault_names(smtp=False, pauses=False))


def test_email_senders_may_use_more_memory() -> None:
    assert memory_complaints({"email_sender-2": 250, "gateway": 150}) == []
    assert memory_complaints({"email_sender": 301, "gateway": 201}) == [
        "email_sender used 301 MiB",
        "gateway used 201 MiB",
    ]


ONE_SENDER, TWO_SENDERS = Burst(600, 5, 1), Burst(600, 5, 2)


class Sends:
    """A burst that was sent in order at `rate`, which a test may then spoil."""

    def __init__(self, rate: float = ONE_SENDER.rate) -> None:
        self.ids = [uuid4() for _ in range(ONE_SENDER.emails)]
        self.statuses = dict.fromkeys(self.ids, "sent")
        self.sent_at = {each: [number / rate] for number, each in enumerate(self.ids)}

    def complaints(self, burst: Burst = ONE_SENDER) -> list[str]:
        posted = [self.ids[first : first + PER_RECIPIENT] for first in range(0, len(self.ids), PER_RECIPIENT)]
        return Paced(posted, self.statuses, self.sent_at).complaints(burst)


def test_burst_at_the_configured_rate_passes() -> None:
    assert Sends().complaints() == []


def test_burst_that_is_too_slow_or_too_fast_fails() -> None:
    assert Sends(ONE_SENDER.rate * 0.8).complaints() == ["took 149.8 s instead of 120"]
    assert Sends(ONE_SENDER.rate * 1.2).complaints() == ["took 99.8 s instead of 120"]


def test_burst_with_an_expired_email_fails() -> None:
    sends = Sends()
    del sends.sent_at[sends.ids[7]]
    sends.statuses[sends.ids[7]] = "expired"
    assert sends.complaints() == ["only 599 were sent: 1 expired, 599 sent"]


def test_burst_with_a_repeated_email_fails() -> None:
    sends = Sends()
    sends.sent_at[sends.ids[7]].append(2.0)
    assert sends.complaints() == ["1 e-mails were sent twice"]


def test_order_of_a_recipients_emails_is_checked_for_one_sender() -> None:
    sends = Sends()
    first, second = sends.ids[:2]
    sends.sent_at[first], sends.sent_at[second] = sends.sent_at[second], sends.sent_at[first]
    assert sends.complaints(ONE_SENDER) == ["1 of 60 recipients got their e-mails in the wrong order"]
    assert sends.complaints(TWO_SENDERS) == []
