"""Settings that make presets small enough for a CPU, and images in place of CIFAR-10's.

The tests and the scripts in ``benchmarks/gpu`` shrink alike.
"""

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

SHRUNK = {
    "teacher.train.network": {
        "model_channels": 8, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [16], "dropout": 0.1
    },
    "teacher.train.batch": 16, "teacher.train.steps": 6, "teacher.train.warmup": 1,
    "features.train.widths": [4, 8], "features.train.batch": 16, "features.train.steps": 4,
    "features.train.warmup": 0,
    "pairs.train": 48, "pairs.held_out": 16, "pairs.num_steps": 3, "pairs.batch_size": 16,
    "training.steps": 4, "training.small_batch": 4, "training.large_batch": 8, "training.warmup": 1,
    "real_data.nfe": 1, "real_data.steps": 2, "real_data.warmup": 0,
    "third_round.pairs": 16, "third_round.nfe": 2, "third_round.steps": 2,
    "evaluation.samples": 32, "seeds": [0],
    "machinery.compile": False, "machinery.workers": 1, "machinery.save_every": 2,
}  # fmt: skip
"""Settings that make the ``cifar10`` preset small; its precision, layout and loaders stay."""

LIGHTER = {
    "evaluation.samples": 12, "pairs.held_out": 12, "machinery.workers": 0, "machinery.tensorboard": False,
    "training.steps": 2, "training.small_batch": 1, "training.large_batch": 2,
}  # fmt: skip
"""What makes it smaller still, for the notebooks."""

LIGHT: dict[str, dict[str, Any]] = {
    "intersections": {
        "couples": 40, "samples": 20, "images_used": 20, "shown": 4, "photo_sizes": [4], "patches": 30
    },
    "timesteps": {"pairs_used": 8},
    "training": {"shown": 2},
    "ablation": {"shown": 2, "uncurated": 8},
    "samplers": {"euler": [1, 2], "heun": [1], "second": [0.3], "shown": 2},
    "inversion": {"evaluations": [2, 4], "gaussian_nfe": 2, "images": 20, "shown": 4},
    "costs": {"passes": 1, "graded": ["F"]},
    "try_your_own": {"steps": 1, "shown": 2},
    "arena": {"entered": ["F", "F in time", "meanflow", "shortcut-pairs", "cd"], "evaluations": [1], "shown": 2},
    "pairs_help": {"couples": 8, "batches": 2, "powers": [0, 0.5]},
    "exact_flow": {"images_used": 5, "noises": 4, "lines": 2, "paths": 2, "chains": 2, "patches": 4},
    "likelihood": {"images": 2, "probes": 2, "exact": 1, "evaluations": [1], "tolerance": 0.1},
    "few_steps": {"evaluations": [2], "pairs_used": 2, "iterations": 1, "shown": 2},
}  # fmt: skip
"""Parameters that make each notebook short, by a part of its name."""


def coloured_digits(folder: Path) -> str:
    """Fill an empty folder with scikit-learn's digits, coloured and enlarged to 32x32, as CIFAR-10's binary version
    has its images; the folder's name."""
    digits = load_digits()
    grey = np.kron(digits.images, np.ones((1, 4, 4))) * (255 / 16)
    tint = np.stack([np.cos(digits.target), np.sin(digits.target), np.ones(len(grey))], axis=1) / 4 + 0.75
    pixels = (grey[:, None] * tint[:, :, None, None]).astype(np.uint8)
    records = np.concatenate([digits.target[:, None].astype(np.uint8), pixels.reshape(len(pixels), -1)], axis=1)
    for number, part in enumerate(np.array_split(records[:1500], 5), start=1):
        (folder / f"data_batch_{number}.bin").write_bytes(part.tobytes())
    (folder / "test_batch.bin").write_bytes(records[1500:].tobytes())
    return str(folder)
