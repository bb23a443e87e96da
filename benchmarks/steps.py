"""One training step of each configuration on digits, at equal batch size: what the premetric costs."""

from __future__ import annotations

import tempfile

from timing import medians, table

from rfpp import features, pairs, premetrics, timesteps, training
from rfpp.pipeline import shipped

BATCH = 256
teacher = shipped.load("digits-teacher")
perceptual = features.FeatureLPIPS(shipped.load("digits-perceptual"))

with tempfile.TemporaryDirectory() as folder:
    dataset = pairs.PairDataset(pairs.generate(teacher, 512, folder, num_steps=4))
    contenders = {}
    for letter, configuration in training.CONFIGURATIONS.items():
        flow = training.initial_flow(teacher, "teacher", dropout=0.0, seed=0)
        premetric = premetrics.bind(configuration.premetric, lambda: perceptual)
        objective = training.Reflow(dataset, timesteps.UShaped(), premetric, BATCH, seed=0)
        contenders[f"{letter}: {configuration.premetric.__name__}"] = lambda flow=flow, objective=objective: (
            objective(flow, 0).mean().backward()
        )
    seconds = medians(contenders)
table(f"forward and backward, batch {BATCH}", seconds, baseline="A: squared_l2")
