"""Other methods for few-step generators, built on the library's own machinery for a comparison on equal terms.

A :class:`rfpp.arena.methods.Method` is an objective together with the data that it trains on. Simple ReFlow's
variants are configurations like A to G. All start from the same teacher's weights and see the same random stream, and
the price of a training step in network passes is known.
"""

from __future__ import annotations

from rfpp import configurations
from rfpp.arena.average import AverageFlow
from rfpp.arena.consistency import Consistency
from rfpp.arena.meanflow import MeanFlow
from rfpp.arena.methods import PLAIN, Method
from rfpp.arena.simple_reflow import SIMPLE_REFLOW, Levelled
from rfpp.arena.split import Shortcut
from rfpp.configurations import Configuration
from rfpp.timesteps import LogitNormal, Uniform, UShaped

__all__ = ["METHODS", "PLAIN", "SIMPLE_REFLOW", "AverageFlow", "Levelled", "Method", "find"]

_NOISE_LEVELS = LogitNormal(-1.1, 2.0)  # log sigma ~ N(-1.1, 2^2)

METHODS: dict[str, Method] = {
    "meanflow": MeanFlow("MeanFlow on images", "images", Uniform()),
    "meanflow-pairs": MeanFlow("MeanFlow on pairs", "pairs", UShaped(4.0)),
    "shortcut": Shortcut("shortcut model on images", "images", Uniform()),
    "shortcut-pairs": Shortcut("shortcut model on pairs", "pairs", UShaped(4.0)),
    "ct": Consistency("consistency training", "images", _NOISE_LEVELS),
    "cd": Consistency("consistency distillation", "images", _NOISE_LEVELS, distilled=True),
}
"""On pairs, times follow the paper's U-shaped law. On images, consistency models use the law of their own publication,
and the others uniform times: MeanFlow's logit-normal law never draws a time near 1, where sampling starts."""


def find(config: str | Configuration | Method) -> Configuration | Method:
    """Return the method or configuration with a name, or what :func:`rfpp.configurations.find` finds.

    Raises ``ValueError`` for an unknown name, or an import path that leads to something else.
    """
    if isinstance(config, Method):
        return config
    if isinstance(config, str):
        if config in METHODS or config in SIMPLE_REFLOW:
            return METHODS.get(config) or SIMPLE_REFLOW[config]
        if ":" in config and isinstance(found := configurations.imported(config, "config"), Method):
            return found
    return configurations.find(config, (*METHODS, *SIMPLE_REFLOW))
