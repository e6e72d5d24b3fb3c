"""Static files and documents, whose cost for the gateway has a limit."""

import httpx
import pytest
from notify_gateway.http.static_files import MAX_PATH

BUNDLE = "/docs/assets/swagger-ui-bundle.js"
FOLDERS = ["/console", "/docs/assets"]


@pytest.mark.parametrize("folder", FOLDERS)
async def test_long_path_is_not_looked_up(api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the path was looked up")

    monkeypatch.setattr("starlette.staticfiles.StaticFiles.lookup_path", fail)
    response = await api.get(f"{folder}/" + "a/" * MAX_PATH)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", [BUNDLE, "/console/main.js", "/"])
async def test_ranges_are_ignored(api: httpx.AsyncClient, path: str) -> None:
    response = await api.get(path, headers={"Range": "bytes=0-1,3-4,6-7"})
    assert response.status_code == 200
    assert len(response.content) == int(response.headers["content-length"]) > 100
    assert response.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/openapi.json", "/asyncapi"])
async def test_documents_are_rendered_once(api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    first = await api.get(path)
    monkeypatch.setattr("starlette.responses.JSONResponse.render", lambda *_: b"{}")
    assert (await api.get(path)).json() == first.json() != {}


async def test_files_are_read_once(api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a large file in a thread for each request costs far more than sending it."""
    first = await api.get(BUNDLE)
    assert len(first.content) == int(first.headers["content-length"]) > 1_000_000

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the file was read again")

    monkeypatch.setattr("anyio.open_file", fail)
    monkeypatch.setattr("pathlib.Path.read_bytes", fail)
    assert (await api.get(BUNDLE)).content == first.content
    assert (await api.head(BUNDLE)).headers["content-length"] == first.headers["content-length"]
    unchanged = await api.get(BUNDLE, headers={"If-None-Match": first.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
