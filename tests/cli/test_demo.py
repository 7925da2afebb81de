"""The demo shows what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_devices_end_equal_in_both_orders() -> None:
    """`make demo` ends with 0, having proved twice that both devices hold the same rows (I7, I9, I10, I32)."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TIDE_", "TIDEMARK_"))}
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Both devices hold the same rows.") == 2
    for outcome in ("overwrote name = Idlewild", "lost to ben", "the row was deleted", "wait for it"):
        assert outcome in done.stdout
