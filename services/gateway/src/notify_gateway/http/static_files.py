"""Static files, served so that no request costs much more than the file."""

from functools import lru_cache
from os import PathLike, stat_result
from pathlib import Path

from fastapi import HTTPException, Response
from starlette import staticfiles
from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send
from typing_extensions import override

MAX_PATH = 255  # characters
SLICE = 64 * 1024  # bytes of a file that wait in memory for a client that does not read


class StaticFiles(staticfiles.StaticFiles):
    """Serves whole files only, because many ranges in one request cost much, and looks up short paths only.

    Each file is read once, because Starlette reads each 64 KiB in a thread, which costs far more than sending them.
    """

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if len(scope["path"]) > MAX_PATH:
            raise HTTPException(404)
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)

    @override
    def file_response(
        self, full_path: str | PathLike[str], stat_result: stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        if isinstance(response, FileResponse):
            return _SlicedResponse(_slices(Path(full_path), stat_result.st_mtime_ns), response)
        return response


class _SlicedResponse(Response):
    """A response whose body is sent in slices, so that a client that does not read keeps only one of them in memory."""

    def __init__(self, slices: list[bytes], response: FileResponse) -> None:
        super().__init__(None, response.status_code, response.headers)
        self._slices = slices

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for each in self._slices:
            await send({"type": "http.response.body", "body": each, "more_body": True})
        await send({"type": "http.response.body"})


@lru_cache(100)
def _slices(path: Path, changed_at: int) -> list[bytes]:  # noqa: ARG001 - a part of the cache's key
    """Return the content of a file, which is read again after a change."""
    content = path.read_bytes()
    return [content[start : start + SLICE] for start in range(0, len(content), SLICE)]
