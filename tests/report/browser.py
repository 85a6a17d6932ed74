"""Headless Chromium, where one is installed: what it makes of a page."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROBE = "probe"


def find_browser():
    """Return the path of a Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A Chromium with a profile of its own; `messages` are those that its console got."""

    def __init__(self, path, profile):
        self._command = [
            path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-extensions", "--disable-background-networking",
            "--hide-scrollbars", f"--user-data-dir={profile}", "--virtual-time-budget=2000",
            "--enable-logging=stderr", "--v=0",
        ]  # fmt: skip
        self.messages = []

    def run(self, page, *options, size=(1280, 900)):
        """Open a page; returns what is written to stdout."""
        window = f"--window-size={size[0]},{size[1]}"
        ended = subprocess.run(
            [*self._command, window, *options, Path(page).as_uri()],
            capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr[-2000:]
        self.messages += [one for one in ended.stderr.splitlines() if ":CONSOLE" in one]
        return ended.stdout

    def probe(self, page, script, *options, size=(1280, 900)):
        """Run the body of a function in a copy of a page, once it is there; returns its value."""
        copy = page.with_name(f"{PROBE}.html")
        added = (
            "<script>addEventListener('load', function () {"
            f"const found = (function () {{ {script} }})();"
            f"const out = document.createElement('pre'); out.id = '{PROBE}';"
            "out.textContent = JSON.stringify(found); document.body.append(out); });</script>"
        )
        text = page.read_text(encoding="utf-8")
        copy.write_text(text.replace("</body>", f"{added}</body>"), encoding="utf-8")
        dom = self.run(copy, "--dump-dom", *options, size=size)
        found = re.search(rf'<pre id="{PROBE}">(.*?)</pre>', dom, re.DOTALL)
        assert found, self.messages
        return json.loads(unescape(found[1]))
