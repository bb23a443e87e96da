"""One training loop for everything, on a laptop or on one or several GPU machines: exact, resumable, any precision.

The training rows come from an :class:`Objective`, which draws row ``i`` of step ``n`` from the seed, the size of the
whole batch, ``n`` and ``i``. The data, times and noise therefore do not depend on the number of processes that share a
step, on the pieces into which each process splits its part, or on interruptions. (Dropout masks depend on the step and
its pieces: an interruption changes none of them, but other pieces do.)
"""

from rfpp.engine.history import BINS, WINDOWS, History
from rfpp.engine.loop import CannotResume, Diverged, fit
from rfpp.engine.machinery import PRECISIONS, Machinery, Optimisation, check, learning_rate
from rfpp.engine.objectives import Batch, Objective
from rfpp.engine.states import Checkpoints

__all__ = [
    "BINS", "PRECISIONS", "WINDOWS", "Batch", "CannotResume", "Checkpoints", "Diverged", "History", "Machinery",
    "Objective", "Optimisation", "check", "fit", "learning_rate",
]  # fmt: skip
