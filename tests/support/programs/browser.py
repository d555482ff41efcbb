"""A headless Chromium: Debian's, or any that is on the PATH with its driver."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.availability import missing

if TYPE_CHECKING:
    from pathlib import Path

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    # Each would ask hosts that a test must not need.
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WAIT = 60.0
"""The longest wait for something on the page, in seconds: on a busy machine a browser is slow to start."""


@contextmanager
def browser(folder: Path) -> Iterator[Any]:
    """Start a browser with its profile in `folder`, and yield its driver.

    Where there is none, skip the test. In CI, fail it if the machine's package manager has one to install.
    """
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        what = "no chromium and chromedriver on the PATH"
        if is_installable("chromium-driver"):
            missing(f"{what}: apt-get install chromium chromium-driver")
        pytest.skip(f"{what}, and apt-cache knows none")
    from selenium import webdriver  # noqa: PLC0415  # needed only where there is a browser

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield opened
    finally:
        opened.quit()


def is_installable(package: str) -> bool:
    """Return whether the lists of apt on this machine have a package."""
    apt = shutil.which("apt-cache")
    return apt is not None and subprocess.run([apt, "show", package], capture_output=True, check=False).returncode == 0


def wait_for(opened: Any, ready: Any) -> Any:
    """Wait until `ready(driver)` returns something true, and return that."""
    from selenium.webdriver.support.ui import WebDriverWait  # noqa: PLC0415

    return WebDriverWait(opened, WAIT).until(ready)
