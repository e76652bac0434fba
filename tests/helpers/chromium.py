"""A headless Chromium, as the tests of pages drive it."""

from pathlib import Path

import pytest


CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
PATIENCE = 60  # seconds; what a test waits for usually takes one or two
QUIET = "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
needed = pytest.mark.skipif(
    not (CHROMIUM.exists() and DRIVER.exists()),
    reason=f"no browser: {CHROMIUM} and {DRIVER} are needed (Debian's packages chromium and chromium-driver)",
)


def start(profile: Path, *arguments: str):
    """A browser of its own, with a log of its console and of what it asked for; selenium has to be there."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ["--headless", "--no-sandbox", "--disable-gpu", *QUIET.split(), *arguments]:
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(str(DRIVER)))
