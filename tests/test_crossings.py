"""Couples for crossings: two pairs of one class where there are classes, and the teacher's loss on images it knows."""

from types import SimpleNamespace

import pytest
import torch

from rfpp import data, pairs
from rfpp.flow import RectifiedFlow
from rfpp.pairs import PairDataset
from rfpp.studies import crossings, losses


@pytest.mark.parametrize(("n", "classes"), [(23, 5), (20, 10), (7, 1)])
def test_every_other_pair_of_the_class_is_equally_likely(n, classes):
    """Shares that divide [0, 1) evenly lead to each of them once, and never to the pair itself."""
    for one in range(n):
        others = [other for other in range(one % classes, n, classes) if other != one]
        share = (torch.arange(len(others), dtype=torch.float64) + 0.5) / len(others)
        found = crossings.other_of_class(torch.full((len(others),), one), n, classes, share)
        assert sorted(found.tolist()) == others


@pytest.fixture
def flat(tmp_path):
    """An experiment whose pairs have one grey level for each of three classes."""

    def paint(z, labels):
        return (labels.float() / 2 - 0.5).reshape(-1, 1, 1, 1).expand(z.shape)

    folder = pairs.generate(None, 30, tmp_path / "pairs", sampler=paint, shape=(1, 2, 2), classes=3)
    return SimpleNamespace(pairs=lambda split, seed: PairDataset(folder))


def test_images_of_a_couple_are_of_one_class(flat):
    """Images of one class are equal here, so their difference adds nothing to the noise; that of two classes does."""
    of_one = crossings.couples(flat, 0, 200)
    assert torch.allclose(of_one.crossing, of_one.gaussian, atol=1e-6)
    mixed = crossings.couples(flat, 0, 200, of_any_class=True)
    differ = (mixed.crossing - mixed.gaussian).abs().amax(dim=(1, 2, 3)) > 0.1
    # 20 of the 29 other pairs are of another class: 0.69, to five standard errors of 200 draws.
    assert differ.float().mean().item() == pytest.approx(20 / 29, abs=5 * (0.69 * 0.31 / 200) ** 0.5)
    assert torch.equal(of_one.gaussian, mixed.gaussian)


def test_the_noise_of_a_pair_is_its_own_unless_fresh(tmp_path):
    """Pairs whose image is a quarter of their noise. Images have 8 bits, so they are off by 1/255 at most."""
    folder = pairs.generate(None, 30, tmp_path / "pairs", sampler=lambda z, labels: z / 4, shape=(1, 2, 2))
    experiment = SimpleNamespace(pairs=lambda split, seed: PairDataset(folder))
    own, fresh = (crossings.couples(experiment, 0, 200, t=0.25, fresh=given) for given in (False, True))
    needed = own.gaussian + 3 * (own.gaussian / 4 - own.wanted)
    assert torch.allclose(own.crossing, needed, atol=3 / 255 + 1e-5)
    assert not torch.isclose(fresh.gaussian, own.gaussian).any()
    assert torch.allclose(fresh.crossing - fresh.gaussian, own.crossing - own.gaussian, atol=1e-5)


def test_the_teachers_loss_is_taken_on_both_splits():
    """A denoiser that knows the training image has no loss on it, and on another image the distance over ``t^2``."""
    known, other = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), torch.zeros((1, 1, 2, 2), dtype=torch.uint8)
    parts = [data.Images(pixels.expand(5, -1, -1, -1), torch.zeros(5, dtype=torch.long)) for pixels in (known, other)]
    flow = RectifiedFlow(lambda x, sigma, labels=None: torch.ones_like(x))
    stand_in = SimpleNamespace(data=data.Dataset("two", *parts, classes=1), classes=0, flow=lambda name: flow)
    (times, seen), (_, unseen) = losses.of_teacher(stand_in, 3).values()
    assert seen.abs().max() < 1e-6 and torch.allclose(unseen, 4 / times**2, rtol=1e-4)
