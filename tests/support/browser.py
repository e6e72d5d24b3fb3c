"""Debian's Chromium, driven by Playwright."""

import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, Request, ViewportSize, async_playwright

from support.debian import unpacked

TIMEOUT = 20_000  # milliseconds; reached only if the test fails
WIDE: ViewportSize = {"width": 1280, "height": 860}
PHONE: ViewportSize = {"width": 390, "height": 844}
# Chromium's sandbox lacks permissions in a container or as root, and a container's /dev/shm may be too small.
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
# Fonts for all the scripts that appear in the screenshots.
FONT_PACKAGES = ("fonts-dejavu-core", "fonts-droid-fallback", "fonts-lohit-deva")
FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>/usr/share/fonts</dir><dir>{root}/usr/share/fonts</dir><cachedir>{root}/cache</cachedir>
<alias><family>sans-serif</family><prefer><family>DejaVu Sans</family></prefer></alias>
<alias><family>system-ui</family><prefer><family>DejaVu Sans</family></prefer></alias>
<alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
</fontconfig>
"""


@dataclass(frozen=True)
class Chromium:
    """The executable of Chromium and the environment that it needs."""

    executable: Path
    environment: Mapping[str, str]


def find_chromium(folder: Path) -> Chromium:
    """Return the installed Chromium, or unpack one in `folder`; skip the test if neither is possible."""
    if os.environ.get("CHROMIUM") or shutil.which("chromium"):
        return Chromium(Path(os.environ.get("CHROMIUM") or str(shutil.which("chromium"))), {})
    root = unpacked("chromium", *FONT_PACKAGES, folder=folder, with_libraries=True)
    (root / "fonts.conf").write_text(FONTS.format(root=root))
    libraries = sorted({str(library.parent) for library in root.glob("**/lib*.so*")})
    return Chromium(
        root / "usr/lib/chromium/chromium",
        {"LD_LIBRARY_PATH": ":".join(libraries), "FONTCONFIG_FILE": str(root / "fonts.conf"), "HOME": str(folder)},
    )


@dataclass
class Watched:
    """A page, and the faults noted on it, such as script errors; any fault fails the test when the page is closed."""

    page: Page
    faults: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()
    """Substrings of console errors to ignore, because the test provokes them, for example through failing requests."""

    def note(self, fault: str) -> None:
        if not any(each in fault for each in self.expected):
            self.faults.append(fault)


@asynccontextmanager
async def running_browser(chromium: Chromium) -> AsyncIterator[Browser]:
    """Run a headless browser until the context ends."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium.executable, args=FLAGS, env={**os.environ, **chromium.environment}
        )
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def opened(
    browser: Browser, url: str, *, size: ViewportSize = WIDE, dark: bool = False, expected: tuple[str, ...] = ()
) -> AsyncIterator[Page]:
    """Open a page in a new context; a script error, a policy violation or a request to another host fails the test."""
    context = await browser.new_context(viewport=size, color_scheme="dark" if dark else "light")
    context.set_default_timeout(TIMEOUT)
    page = await context.new_page()
    watched = Watched(page, expected=expected)
    host = urlsplit(url).netloc

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            watched.note(message.text)

    def on_request(request: Request) -> None:
        if urlsplit(request.url).netloc != host:
            watched.note(f"another host: {request.url}")

    page.on("console", on_console)
    page.on("pageerror", lambda error: watched.note(f"script: {error}"))
    page.on("request", on_request)
    page.on("dialog", lambda dialog: watched.note(f"dialog: {dialog.message}"))
    await page.goto(url)
    try:
        yield page
    finally:
        await context.close()
    if watched.faults:
        pytest.fail("\n".join(watched.faults))
