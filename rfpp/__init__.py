"""Rectified flows and 2-rectified flow++ (Lee, Lin and Fanti, NeurIPS 2024), small enough to read and to rerun.

Data ``x`` lives at ``t = 0``, noise ``z ~ N(0, I)`` at ``t = 1``, and ``x_t = (1 - t) x + t z`` throughout. Images are
float tensors ``(B, C, H, W)`` in [-1, 1]; ``d = C H W``. The modules follow the data:

``data -> denoisers (teacher) -> pairs -> training -> flow -> samplers -> metrics -> claims -> book``

:class:`rfpp.experiment.Experiment` walks that path for one preset and keeps each finished step on disk.
"""

import os

__version__ = "0.1.0"

# Torch's compiler is to compute convolutions in channels-last, the layout of the presets for GPUs. By a rule of thumb
# it would not where one has far fewer channels after it than before, as in a U-Net's decoder, and would copy around
# most of them. So a training step of the CIFAR-10 network takes a fifth less time. Torch reads this once, when its
# compiler is imported.
os.environ.setdefault("TORCHINDUCTOR_FORCE_LAYOUT_OPT", "1")
