"""Load a page in Chromium. The page must not write to the console, and must not send a request."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="`chromium` is not installed")


def dom_of(page: Path, tmp_path: Path) -> bytes:
    """Return the page's elements after loading. Fail if the page wrote to the console or sent a request."""
    finished = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            "--host-resolver-rules=MAP * ~NOTFOUND",  # blocks the browser's own requests
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--log-net-log={tmp_path / 'net.json'}",
            *("--enable-logging=stderr", "--v=0", "--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        timeout=100,
        check=True,
    )
    assert b"CONSOLE" not in finished.stderr
    log = json.loads((tmp_path / "net.json").read_bytes())
    requests = [event["params"] for event in log["events"] if "initiator" in event.get("params", {})]
    assert not [request["url"] for request in requests if request["initiator"] != "not an origin"]
    return finished.stdout
