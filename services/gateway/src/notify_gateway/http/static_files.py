"""Static files, served so that no request costs much more than the file."""

from fastapi import HTTPException
from starlette import staticfiles
from starlette.types import Receive, Scope, Send
from typing_extensions import override

MAX_PATH = 255  # characters


class StaticFiles(staticfiles.StaticFiles):
    """Serves whole files only, because many ranges in one request cost much, and looks up short paths only."""

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if len(scope["path"]) > MAX_PATH:
            raise HTTPException(404)
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)
