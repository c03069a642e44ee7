"""Open a page in Chromium: it must not write to the console, and must not request anything."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no `chromium` here")


def dom_of(page: Path, tmp_path: Path) -> bytes:
    """Return the page's elements after it was loaded. Fails if it wrote to the console or requested anything."""
    shown = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            "--host-resolver-rules=MAP * ~NOTFOUND",  # what the browser wants for itself stays here
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--log-net-log={tmp_path / 'net.json'}",
            *("--enable-logging=stderr", "--v=0", "--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        timeout=100,
        check=True,
    )
    assert b"CONSOLE" not in shown.stderr
    log = json.loads((tmp_path / "net.json").read_bytes())
    asked = [event["params"] for event in log["events"] if "initiator" in event.get("params", {})]
    assert not [each["url"] for each in asked if each["initiator"] != "not an origin"]
    return shown.stdout
