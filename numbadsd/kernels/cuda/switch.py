"""The switch between a device and the simulator, read once."""

import os

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") == "1"
