"""Details that a training or a store goes on without when they are wrong: it only becomes another one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from truth import DATA, fit

from rfpp import engine, samplers, timesteps
from rfpp.denoisers import GaussianMixtureDenoiser
from rfpp.experiment import Experiment
from rfpp.pairs import PairDataset

# Dropout


class Masked(nn.Module):
    """Ones, of which dropout takes half."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64))

    def forward(self):
        return F.dropout(self.weight, 0.5, self.training)


class Masks(engine.Objective):
    """Notes which activations were dropped, each time it is asked for losses."""

    batch_size = 4

    def __init__(self):
        self.seen = []

    def draw(self, step, rows):
        return (torch.zeros(len(rows)),)

    def losses(self, model, rows):
        ones = model()
        self.seen.append("".join("0" if value == 0 else "1" for value in ones.tolist()))
        return ones.sum() + rows


def masks(steps=5, **options):
    objective = Masks()
    fit(Masked(), objective, steps, **options)
    return objective.seen


def test_dropout_takes_other_activations_at_each_step():
    """Of 64 each time: that two masks of chance agree has the probability 2^-64."""
    first = masks()
    assert len(set(first)) == len(first) == 5 and all(10 < mask.count("1") < 54 for mask in first)


def test_dropout_takes_other_activations_in_each_piece_of_a_step():
    seen = masks(machinery=engine.Machinery(micro_batch=1))
    assert len(set(seen)) == len(seen) == 20


def test_dropout_belongs_to_the_seed():
    assert masks(seed=1) == masks(seed=1) and not set(masks(seed=1)) & set(masks(seed=2))


# Fine-tuning on real images


def velocities(experiment, *configs):
    x_t, labels = experiment.noise(10)
    return [experiment.flow(config).velocity(x_t, 0.5, labels) for config in configs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("still", [{"real_data.lr": 1e-12}, {"real_data.warmup": 10**9}])
def test_g_learns_at_its_own_rate_from_f(folder, still):
    """Where that is next to nothing G is F, however fast F itself was trained; F is not its teacher."""
    teacher, f, g = velocities(Experiment("smoke", still, runs=folder), "teacher", "F", "G")
    assert (f - teacher).norm() > 1e-2
    assert (g - f).norm() < 1e-4 * (f - teacher).norm()


def test_the_general_rate_is_not_gs(folder):
    """The other way round: an F that stayed where it was, and a G that moves."""
    teacher, f, g = velocities(
        Experiment("smoke", {"training.lr": 1e-12, "real_data.lr": 1e-3}, runs=folder), "teacher", "F", "G"
    )
    assert (f - teacher).norm() < 1e-4 * (g - f).norm() and (g - f).norm() > 1e-2


# Times and pairs


@pytest.mark.parametrize("law", [timesteps.Uniform(), timesteps.UShaped(4.0), timesteps.UShaped(100.0)])
def test_times_reach_from_one_end_of_the_papers_interval_to_the_other(law):
    """Appendix E: 1e-5 from either end, as float32 has them. Of so many draws some come near to both."""
    drawn = law.sample(200_000, torch.Generator().manual_seed(0)).double()
    assert 1e-5 - 1e-9 <= drawn.min() < 1e-4 and 1e-4 > 1 - drawn.max() >= 1e-5 - 1e-7


def test_pairs_that_were_stored_keep_their_noise():
    """Twelve pairs made long ago, of seed 7 and Gaussian data with standard deviation 0.3.

    The noise of pairs is not stored: a stream of another name would leave the images without theirs.
    """
    x, z, labels = PairDataset(DATA / "pairs-1").batch(torch.arange(12))
    truth = samplers.edm_sample(GaussianMixtureDenoiser(torch.zeros(1, 1, 4, 4), 0.3), z, 18)
    assert labels is None and x.std() == pytest.approx(0.3, abs=0.05)
    assert (x - truth).abs().max() <= 0.5 / 127.5 + 1e-4
