"""One vocabulary, two worlds: kernels import their words from here and never ask which."""

from numbadsd.kernels.cuda.switch import SIMULATED

if SIMULATED:
    from numbadsd.kernels.cuda.sim_words import *  # noqa: F403
else:
    from numbadsd.kernels.cuda.ptx import *  # noqa: F403
