"""A webhook receiver that verifies signatures with the Standard Webhooks library."""

import json
import ssl
from base64 import b64encode
from pathlib import Path
from typing import Any

import trustme
from notify_common.sending.provider import Provider
from notify_webhook_sender.settings import WebhookSenderSettings
from notify_webhook_sender.webhook import Webhook
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError
from typing_extensions import override

from support.conformance import SECRET, Behaviour
from support.http_peer import HttpPeer, HttpRequest

RESPONSES: dict[Behaviour, tuple[int, dict[str, str], bytes]] = {
    Behaviour.ACCEPT: (204, {}, b""),
    Behaviour.PERMANENT: (410, {}, b"gone"),
    Behaviour.TEMPORARY: (500, {}, b"Internal Server Error"),
    Behaviour.THROTTLE: (429, {"Retry-After": "7"}, b"Too Many Requests"),
}


def key(secret: str) -> str:
    """Return `secret` in the Standard Webhooks format."""
    return f"whsec_{b64encode(secret.encode()).decode()}"


class WebhookPeer(HttpPeer):
    """An HTTPS server on `localhost`; it requires client certificates if `wants_client` is true."""

    def __init__(self, folder: Path, *, wants_client: bool = False) -> None:
        authority = trustme.CA()
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost").configure_cert(tls)
        if wants_client:
            tls.verify_mode = ssl.CERT_REQUIRED
        self._ca_file = folder / "ca.pem"
        authority.cert_pem.write_to_path(self._ca_file)
        super().__init__(tls)
        self.answers = dict(RESPONSES)
        self.requests: list[HttpRequest] = []
        """The accepted requests, all of which had a valid signature."""

    @property
    def recipient(self) -> str:
        return f"https://localhost:{self._port}/hooks"

    def settings(self, secrets: str, **change: object) -> WebhookSenderSettings:
        return WebhookSenderSettings.model_validate(
            {
                "webhook_provider": "http",
                "webhook_secrets": secrets,
                "webhook_allowed_networks": "127.0.0.0/8 ::1/128",
                "webhook_ca_file": self._ca_file,
                **change,
            }
        )

    def provider(self, secret: str = SECRET) -> Provider:
        return Webhook(self.settings(key(secret)))

    def received(self) -> list[str]:
        return [event["data"]["message"] for event in self.payloads()]

    def payloads(self) -> list[dict[str, Any]]:
        return [json.loads(request.body) for request in self.requests]

    @override
    async def answer(self, request: HttpRequest) -> tuple[int, dict[str, str], bytes]:
        try:
            Verifier(key(SECRET)).verify(request.body, request.headers)
        except WebhookVerificationError:
            return 401, {}, b"unknown signature"
        if self.behaviour is Behaviour.ACCEPT:
            self.requests.append(request)
        return self.answers[self.behaviour]
