"""How good samples and trajectories are."""

from rfpp.metrics.grades import (
    NEIGHBOURS,
    PUBLISHED_MANIFOLD,
    PUBLISHED_N,
    PUBLISHED_REFERENCE,
    SPLITS,
    Grades,
    Protocol,
    grade,
    inception_score,
)
from rfpp.metrics.inception import INCEPTION_SHA256, INCEPTION_URL, Extractor, Inception, embed, inception
from rfpp.metrics.samples import label_agreement, norm_distance, precision_recall
from rfpp.metrics.statistics import MAX_BYTES, Moments, Statistics, frechet_distance
from rfpp.metrics.trajectories import straightness

__all__ = [
    "INCEPTION_SHA256", "INCEPTION_URL", "MAX_BYTES", "NEIGHBOURS", "PUBLISHED_MANIFOLD", "PUBLISHED_N",
    "PUBLISHED_REFERENCE", "SPLITS", "Extractor", "Grades", "Inception", "Moments", "Protocol", "Statistics", "embed",
    "frechet_distance", "grade", "inception", "inception_score", "label_agreement", "norm_distance", "precision_recall",
    "straightness",
]  # fmt: skip
