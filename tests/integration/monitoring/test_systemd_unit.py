"""Check the systemd unit with systemd-analyze. tests/acceptance/test_booted_unit.py starts it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.requirements import skip_missing

UNIT = Path(__file__).parents[3] / "systemd" / "ingestor.service"
MAX_EXPOSURE = 1.1  # on a scale to 10


def analyze(*arguments: str) -> str:
    program = shutil.which("systemd-analyze")
    if program is None:
        skip_missing("systemd-analyze: install systemd")
    done = subprocess.run([program, "--no-pager", *arguments], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def test_systemd_accepts_the_unit_without_a_message(tmp_path: Path) -> None:
    # It prints a message for an unknown directive, but exits with 0.
    text = UNIT.read_text().replace("/opt/ingestor/bin/ingestor", "/bin/true")
    unit = tmp_path / "ingestor.service"
    unit.write_text(text)
    assert analyze("verify", str(unit)) == ""


def test_unit_is_well_sandboxed() -> None:
    report = analyze("security", "--offline=true", str(UNIT))
    found = re.search(r"Overall exposure level for ingestor\.service: ([\d.]+)", report)
    assert found, report
    assert float(found[1]) <= MAX_EXPOSURE


@pytest.mark.parametrize(
    "line",
    [
        "Type=notify",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "WatchdogSec=60",
        "RestartPreventExitStatus=2 77 78",
        "LimitCORE=0",
        "StateDirectoryMode=0750",
        "NoExecPaths=/ /var/lib/ingestor /run/ingestor /tmp /var/tmp /dev/shm",
        "LoadCredential=api_key:/etc/ingestor/credentials/api_key",
    ],
)
def test_unit_has_what_the_score_does_not_measure(line: str) -> None:
    assert line in UNIT.read_text().splitlines()


def test_unit_has_no_secret_in_the_environment() -> None:
    environment = [line for line in UNIT.read_text().splitlines() if line.startswith("Environment")]
    assert environment == ["Environment=INGESTOR_CONFIG=/etc/ingestor/config.yaml"]
