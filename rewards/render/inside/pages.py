"""Draws web pages in a browser that stays, with a context of its own for every page.

The one who asks watches time and memory from outside and ends all of this where a page takes too much.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
from dataclasses import dataclass

from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Route, sync_playwright

from rewards.render.inside.fork_server import SOCKET
from rewards.render.inside.frames import Answer, Failure, read_program, write_all

OFFLINE = (
    "--disable-gpu", "--disable-extensions", "--disable-background-networking", "--disable-component-update",
    "--disable-domain-reliability", "--disable-sync", "--no-pings", "--no-first-run", "--mute-audio",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--force-color-profile=srgb", "--font-render-hinting=none",
)  # fmt: skip
LOCAL = "Not allowed to load local resource"
"""What the browser says of a file: link before anything asks for it."""


@dataclass(frozen=True)
class Settings:
    """How pages are drawn, and what processes may take."""

    browser: str
    height: int
    width: int
    scripts: bool
    memory_mb: int
    files_mb: int


def main() -> None:
    """Serve until the socket is closed: argv is the settings as JSON."""
    settings = Settings(**json.loads(sys.argv[1]))
    size = settings.memory_mb << 20
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (settings.files_mb << 20, settings.files_mb << 20))
    resource.setrlimit(resource.RLIMIT_NPROC, (512, 512))
    with sync_playwright() as playwright:

        def launched() -> Browser:
            flags = [*OFFLINE] if settings.scripts else [*OFFLINE, "--js-flags=--jitless --lite-mode --single-threaded"]
            return playwright.chromium.launch(executable_path=settings.browser, args=flags, chromium_sandbox=True)

        browser = launched()
        served(browser, b"<p>a first page</p>", settings)
        silence = os.open("/dev/null", os.O_WRONLY)
        os.dup2(silence, 2)  # from here on it would say what pages make the browser say
        write_all(SOCKET, Answer(Failure.EMPTY, "ready").packed())
        while True:
            try:
                program = read_program(SOCKET)
            except EOFError:
                os._exit(0)  # the sandbox ends with it, whatever the browser is at
            if not browser.is_connected():
                browser = launched()
            write_all(SOCKET, served(browser, program, settings).packed())


def served(browser: Browser, program: bytes, settings: Settings) -> Answer:
    """The picture of a page (HTML in UTF-8), `height` x `width` pixels from its top left corner."""
    blocked: list[str] = []

    def refuse(route: Route) -> None:
        blocked.append(route.request.url)
        route.abort()

    def listen(message: ConsoleMessage) -> None:
        if LOCAL in message.text:
            blocked.append(message.text.removeprefix(f"{LOCAL}:").strip())

    try:
        context = browser.new_context(
            viewport={"width": settings.width, "height": settings.height}, java_script_enabled=settings.scripts,
            offline=True, accept_downloads=False, service_workers="block",
        )  # fmt: skip
        context.set_default_timeout(0)  # time is watched from outside
        try:
            context.route("**/*", refuse)
            page = context.new_page()
            page.on("console", listen)
            page.on("dialog", lambda dialog: dialog.dismiss())
            picture = _drawn(page, program.decode(errors="replace"))
        finally:
            context.close()
    except Error as error:
        if blocked:
            return Answer(Failure.FORBIDDEN, f"it asks for {blocked[0][:200]}")
        return Answer(Failure.CRASHED, f"the browser says: {error.message.splitlines()[0][:200]}")
    if blocked:
        return Answer(Failure.FORBIDDEN, f"it asks for {blocked[0][:200]}")
    pixels = picture.tobytes()
    if pixels == pixels[:3] * (len(pixels) // 3):
        return Answer(Failure.EMPTY, "all pixels are alike")
    return Answer(height=picture.height, width=picture.width, pixels=pixels)


def _drawn(page: Page, html: str) -> Image.Image:
    page.set_content(html, wait_until="load")
    png = page.screenshot(animations="disabled", caret="hide", scale="css")
    return Image.open(io.BytesIO(png)).convert("RGB")
