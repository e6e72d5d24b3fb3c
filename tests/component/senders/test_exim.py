"""The SMTP provider, tested against Exim, a widely used mail server."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from notify_common.contracts.messages import DeliveryRequested, EmailContent
from notify_common.sending.errors import PermanentFailure, ProviderFailure, TemporaryFailure, Unreachable
from notify_email_sender.smtp import Smtp
from support.conformance import request
from support.exim import Exim, running_exim
from support.services import eventually

LANGUAGES = [
    ("Your order is on its way", "It left our warehouse.\n.\nThank you.\n"),
    ("Ваш заказ в пути", "Он покинул наш склад.\n"),
    ("您的订单已发货", "它已离开我们的仓库。\n"),
    ("طلبك في الطريق", "غادر مستودعنا.\n"),
]


@pytest.fixture(scope="module")
def exim() -> Iterator[Exim]:
    with running_exim() as exim:
        yield exim


@pytest.fixture
async def smtp(exim: Exim) -> AsyncIterator[Smtp]:
    smtp = Smtp(exim.settings())
    yield smtp
    await smtp.aclose()


async def test_each_message_arrives_in_the_mailbox_once(exim: Exim, smtp: Smtp) -> None:
    requests = {
        subject: request("Кому@example.org" if subject is LANGUAGES[1][0] else "to@example.org", text, subject)
        for subject, text in LANGUAGES
    }
    html = request("to@example.org", "plain", "with HTML", EmailContent(html="<p>marked up</p>"))
    # Exim accepts only five messages per connection and twenty connections at a time. The provider must therefore
    # close a connection after five messages.
    many = [request("to@example.org", f"text {number}", f"number {number}") for number in range(200)]
    slots = asyncio.Semaphore(10)  # the number of connections that a sender uses

    async def send(request: DeliveryRequested) -> str:
        async with slots:
            return await smtp.send(request)

    responses = await asyncio.gather(*map(send, [*requests.values(), html, *many]))
    assert all(response.startswith("OK id=") for response in responses)

    async def all_arrived() -> bool:
        return len(exim.mailbox()) >= len(responses)

    await eventually(all_arrived, "all messages are in the mailbox")
    mailbox = {message["Subject"]: message for message in exim.mailbox()}
    assert len(exim.mailbox()) == len(mailbox) == len(responses)
    for subject, text in LANGUAGES:
        assert mailbox[subject].get_content().replace("\r\n", "\n") == text
        assert mailbox[subject]["Message-ID"] == f"<{requests[subject].delivery_id}@example.org>"
    kinds = [part.get_content_type() for part in mailbox["with HTML"].iter_parts()]
    assert kinds == ["text/plain", "text/html"]
    assert not any(message.defects for message in mailbox.values())


@pytest.mark.parametrize(
    ("recipient", "kind", "code"),
    [
        ("nobody@example.org", PermanentFailure, "smtp_550"),
        ("busy@example.org", TemporaryFailure, "smtp_451"),
    ],
)
async def test_refusal_reports_the_mail_servers_reply_code(
    smtp: Smtp, recipient: str, kind: type[ProviderFailure], code: str
) -> None:
    for _ in range(2):
        with pytest.raises(kind, match=code):
            await smtp.send(request(recipient))


async def test_refused_login_counts_as_an_unreachable_provider(exim: Exim) -> None:
    smtp = Smtp(exim.settings(smtp_password="another"))
    with pytest.raises(Unreachable, match="smtp_535"):
        await smtp.send(request("to@example.org"))
    await smtp.aclose()
