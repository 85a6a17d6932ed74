"""compute-sanitizer over a small decode: bad accesses and races that results may not show."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[3] / "bench_results" / "gpu_check.py"


@pytest.mark.gpu
def test_a_decode_has_no_bad_access_and_no_race(tmp_path):
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("compute-sanitizer is not on the path")
    command = [sys.executable, CHECK, "--only", "sanitizer", "--out", tmp_path, "--commit", "test"]
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)
    assert ended.returncode == 0, ended.stdout + ended.stderr
