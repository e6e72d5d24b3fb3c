"""Configuration, secrecy and requests, without a gateway."""

import logging
import pickle
from datetime import UTC, datetime
from uuid import UUID

import httpx
import pytest
from notify_client import (
    ApiError,
    AsyncClient,
    AuthenticationFailed,
    Client,
    ConfigurationError,
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    WaitTimedOut,
)
from notify_client.config import Config
from notify_client.errors import api_error
from notify_client.models import CreatedKey, Notification
from notify_client.resources.notifications import create_notification, get_notification, list_notifications
from notify_client.resources.users import get_user_channel, set_user_channel
from notify_client.retrying import Call

CONFIG = Config("http://gateway/base", "ntf_secret", timeout=3.0, max_retries=0)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_url_and_key_come_from_arguments_or_the_environment(
    kind: type[Client | AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_URL", raising=False)
    monkeypatch.delenv("NOTIFY_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="NOTIFY_URL"):
        kind(api_key="k")
    assert kind("http://a/").config.api_key is None
    monkeypatch.setenv("NOTIFY_URL", "https://b:8443/x/")
    monkeypatch.setenv("NOTIFY_API_KEY", "from-environment")
    assert (kind().config.base_url, kind().config.api_key) == ("https://b:8443/x", "from-environment")
    assert (kind("http://a", "given").config.base_url, kind("http://a", "given").config.api_key) == (
        "http://a",
        "given",
    )


@pytest.mark.parametrize(
    "url", ["gateway:8080", "ftp://gateway", "http://", "http://u:p@gateway", "http://g?a=b", "http://g:port"]
)
def test_unusable_url_is_an_error_that_names_the_variable(url: str) -> None:
    with pytest.raises(ConfigurationError, match="NOTIFY_URL"):
        Client(url)


@pytest.mark.parametrize(
    ("key", "reason"),
    [("two words", "a space"), ("line\n", "a space"), ("schlüssel", "not ASCII"), ("ntf_…", "not a real key")],
)
def test_unusable_key_is_an_error_that_does_not_repeat_it(key: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=f"NOTIFY_API_KEY.*{reason}") as raised:
        Client("http://gateway", key)
    assert key not in str(raised.value)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_key_is_in_no_representation(kind: type[Client | AsyncClient]) -> None:
    client = kind("http://gateway", "ntf_secret")
    created = CreatedKey(id=UUID(int=1), token="ntf_secret", name="", scopes=[], test=False)
    for text in (repr(client), repr(client.config), str(client.config), repr(created), repr(vars(client))):
        assert "ntf_secret" not in text


def test_key_is_in_no_log_or_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = Client("http://127.0.0.1:1", "ntf_secret", max_retries=1)
    with pytest.raises(ConnectionFailed) as raised:
        client.notifications.create(user_id="1", channels=["email"], message="private")
    assert "retry 1" in caplog.text
    for text in (caplog.text, str(raised.value), repr(raised.value)):
        assert "ntf_secret" not in text
        assert "private" not in text


def test_missing_key_is_named_once_the_gateway_requires_one() -> None:
    response = httpx.Response(401, content=b'{"title": "U", "status": 401, "detail": "No.", "code": "unauthenticated"}')
    without_key = Config("http://gateway", None, timeout=1.0, max_retries=0)
    with pytest.raises(AuthenticationFailed, match="NOTIFY_API_KEY"):
        Call(get_notification("1"), without_key).result(response)
    with pytest.raises(AuthenticationFailed) as raised:
        Call(get_notification("1"), CONFIG).result(response)
    assert raised.value.detail == "No."


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(404, content=b"<html>"),
        httpx.Response(405),
        httpx.Response(302),
        httpx.Response(501),
        httpx.Response(200, content=b"<html>"),
        httpx.Response(200, content=b"{}"),
    ],
)
def test_response_of_another_server_asks_for_the_address(response: httpx.Response) -> None:
    with pytest.raises(ApiError, match="Is http://gateway/base the address of a gateway, without /v1\\?"):
        Call(get_notification("1"), CONFIG).result(response)


def test_url_with_the_version_asks_for_the_address() -> None:
    content = b'{"title": "Not Found", "status": 404, "detail": "Not Found", "code": "not_found"}'
    for url, hinted in (("http://gateway/v1", True), ("http://gateway", False)):
        config = Config(url, None, timeout=1.0, max_retries=0)
        with pytest.raises(NotFound) as raised:
            Call(get_notification("1"), config).result(httpx.Response(404, content=content))
        assert ("the address of a gateway, without /v1?" in str(raised.value)) is hinted


@pytest.mark.parametrize("status", [401, 429, 502, 503, 504])
def test_response_of_a_proxy_does_not_ask_for_the_address(status: int) -> None:
    with pytest.raises(ApiError) as raised:
        Call(get_notification("1"), CONFIG).result(httpx.Response(status, content=b"<html>"))
    assert "address" not in str(raised.value)


def test_request_has_the_headers_and_timeout_of_the_client() -> None:
    request = get_notification("a/b?c").to_httpx(CONFIG)
    assert str(request.url) == "http://gateway/base/v1/notifications/a%2Fb%3Fc"
    assert request.headers["Authorization"] == "Bearer ntf_secret"
    assert request.headers["User-Agent"].startswith("notify-gateway-client/")
    assert "Idempotency-Key" not in request.headers
    assert request.extensions["timeout"] == httpx.Timeout(3.0).as_dict()


def test_creation_sends_what_is_given_and_a_key_of_its_own() -> None:
    at = datetime(2026, 12, 24, 7, tzinfo=UTC)
    first = create_notification(user_id="1", channels=("email",), message="Grüße", send_at=at, to={"email": "a@b.de"})
    request, again = first.to_httpx(CONFIG), first.to_httpx(CONFIG)
    assert request.content.decode() == (
        '{"user_id":"1","channels":["email"],"message":"Grüße","to":{"email":"a@b.de"},"send_at":"2026-12-24T07:00:00Z"}'
    )
    other = create_notification(user_id="1", channels=("email",), message="Grüße").to_httpx(CONFIG)
    assert request.headers["Idempotency-Key"] == again.headers["Idempotency-Key"] != other.headers["Idempotency-Key"]
    chosen = create_notification(user_id="1", channels=("email",), message="m", idempotency_key=UUID(int=5))
    assert chosen.to_httpx(CONFIG).headers["Idempotency-Key"] == str(UUID(int=5))


@pytest.mark.parametrize("key", ["", "ключ", "a\nb"])
def test_idempotency_key_that_no_header_can_contain_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequest, match="idempotency-key: must") as raised:
        create_notification(user_id="1", channels=("email",), message="m", idempotency_key=key)
    assert [each.field for each in raised.value.errors] == ["idempotency-key"]


def test_query_repeats_lists_and_names_metadata() -> None:
    request = list_notifications(
        status=["sent", "failed"],
        metadata={"order": "5 5"},
        created_after=datetime(2026, 1, 1, tzinfo=UTC),
        page_size=7,
    )
    assert request.to_httpx(CONFIG).url.params == httpx.QueryParams(
        [
            ("status", "sent"),
            ("status", "failed"),
            ("created_after", "2026-01-01T00:00:00Z"),
            ("limit", "7"),
            ("metadata.order", "5 5"),
        ]
    )


def test_ids_of_users_may_contain_any_characters() -> None:
    request = get_user_channel("ü @+%", "email").to_httpx(CONFIG)
    assert request.url.raw_path == b"/base/v1/users/%C3%BC%20%40%2B%25/channels/email"


def test_recipient_none_differs_from_no_recipient() -> None:
    assert set_user_channel("1", "email", opted_out=True).to_httpx(CONFIG).content == b'{"opted_out":true}'
    assert set_user_channel("1", "email", recipient=None).to_httpx(CONFIG).content == b'{"recipient":null}'


def test_errors_survive_pickling() -> None:
    content = (
        b'{"type": "/x", "title": "X", "status": 409, "detail": "d", "code": "not_cancellable", "request_id": "r"}'
    )
    notification = Notification(
        id=UUID(int=1), user_id="1", channels=[], status="pending", created_at=datetime.now(UTC), deliveries=[]
    )
    errors: list[ApiError | ConnectionFailed | WaitTimedOut] = [
        api_error(409, content, 1.0), ConnectionFailed("x", False), WaitTimedOut(notification)
    ]  # fmt: skip
    for error in errors:
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - ours
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
