"""A server for the rendered pages on the loopback, the browser to look at them with, and screenshots of each page.

``python tests/screens.py FOLDER`` saves each page of the rendered book at the width of a desktop and of a phone.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from waiting import PATIENCE

from radio_utils.book.project import BookError, Project
from radio_utils.book.render import pages

WIDTHS = (1280, 390)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def browser_path() -> str | None:
    """An installed Chromium, or None. `apt-get install chromium` gives one on Debian."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve ``folder`` over HTTP on a free port of the loopback; yields the address, without a closing slash."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class names it so)
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium of playwright's synchronous interface.

    Raises:
        BookError: no Chromium, or no playwright, is installed.
    """
    path = browser_path()
    if path is None:
        raise BookError("no Chromium is installed; `apt-get install chromium` gives one")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise BookError("screenshots need playwright: pip install 'radio-utils[test]'") from error
    with sync_playwright() as playwright:
        # root, as in most containers, may run Chromium only without its sandbox; the pages are our own
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        chromium = playwright.chromium.launch(executable_path=path, args=arguments, timeout=1000 * PATIENCE)
        try:
            yield chromium
        finally:
            chromium.close()


def screenshots(project: Project, folder: Path, preset: str = "laptop") -> list[Path]:
    """Save each page of the rendered book at the width of a desktop and of a phone; returns the files.

    Raises:
        BookError: the book isn't rendered, or there is no browser.
    """
    html = project.html(preset)
    if not (html / "index.html").is_file():
        raise BookError(f"{html} holds no rendered book; run `python -m radio_utils.book render --preset {preset}` first")
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with served(html) as address, browser() as chromium:
        for width in WIDTHS:
            page = chromium.new_page(viewport={"width": width, "height": 900})
            page.set_default_timeout(1000 * PATIENCE)
            for name in pages(project):
                page.goto(f"{address}/{name}.html", wait_until="load")
                wait_for_mathjax(page)
                if page.locator("iframe").count():  # a frame below the window is not painted
                    height = page.evaluate("document.documentElement.scrollHeight")
                    page.set_viewport_size({"width": width, "height": height})
                    page.wait_for_timeout(500)
                files.append(folder / f"{name.replace('/', '-')}-{width}.png")
                page.screenshot(path=str(files[-1]), full_page=True)
                page.set_viewport_size({"width": width, "height": 900})
            page.close()
    return files


def wait_for_mathjax(page: Any) -> None:
    """Wait until the equations of ``page`` are typeset; at once when it has none.

    Raises:
        playwright's TimeoutError: they are not, as long as the page waits for anything.
    """
    page.wait_for_function(
        """() => [...document.querySelectorAll('.math.notranslate')].every(one => one.querySelector('.MathJax'))
                 && (!window.MathJax?.Hub || MathJax.isReady && !MathJax.Hub.queue.pending)"""
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Save each page at the width of a desktop and of a phone.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="laptop")
    options = parser.parse_args()
    try:
        files = screenshots(Project(Path(__file__).resolve().parents[1]), options.folder, options.preset)
    except BookError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{len(files)} screenshots in {options.folder}\n")
