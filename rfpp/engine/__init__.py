"""One training loop for everything, on a laptop, a box with GPUs or several: exact, resumable, in any precision.

What is trained on comes from an :class:`Objective`, which draws row ``i`` of step ``n`` from the seed, ``n`` and ``i``.
How many processes share a step, into how many pieces each cuts its part, and whether the run was interrupted therefore
change neither the data, nor the times, nor the noise. (Dropout masks depend on the step and on its pieces: an
interruption changes none of them, another cut does.)
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
