"""Data: scikit-learn's own arrays, a split without overlap, and pixels that come back as they went in."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from truth import randn

from rfpp import data


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def rows(images, labels):
    """Images and labels as a multiset."""
    return sorted((*image.flatten().tolist(), int(label)) for image, label in zip(images, labels, strict=True))


def test_every_scan_is_there_once_with_its_label(digits):
    """scikit-learn's grey levels 0..16, recovered exactly from the 8-bit pixels, as a multiset over both splits."""
    source = load_digits()
    images = torch.cat([digits.train.pixels, digits.held_out.pixels]).double() * 16 / 255
    labels = torch.cat([digits.train.labels, digits.held_out.labels])
    assert (images - images.round()).abs().max() <= 0.5 * 16 / 255
    assert rows(images.round().int(), labels) == rows(torch.from_numpy(source.images).int(), source.target)


def test_the_split_is_a_fifth_of_each_class(digits):
    """1,797 scans: 1,437 and 360, and within one of a fifth in each class."""
    assert len(digits.train) == 1437 and len(digits.held_out) == 360 and digits.classes == 10
    of_class, held_out = (
        torch.bincount(part, minlength=10) for part in (torch.from_numpy(load_digits().target), digits.held_out.labels)
    )
    assert (held_out - of_class / 5).abs().max() <= 1


def test_the_split_is_fixed(digits):
    again = data.digits()
    assert torch.equal(again.train.pixels, digits.train.pixels) and torch.equal(
        again.held_out.labels, digits.held_out.labels
    )


def test_no_held_out_image_is_trained_on(digits):
    """Not even a copy with the same pixels."""
    train = {image.numpy().tobytes() for image in digits.train.pixels}
    assert not [image for image in digits.held_out.pixels if image.numpy().tobytes() in train]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_share_that_is_held_out(share):
    assert len(data.digits(share).held_out) == pytest.approx(1797 * share, abs=1)


def test_shapes_and_types(digits):
    assert digits.train.shape == (1, 8, 8) and digits.train.pixels.dtype == torch.uint8
    assert digits.train.labels.dtype == torch.int64
    floats = digits.train.floats()
    assert floats.dtype == torch.float32 and floats.min() == -1 and floats.max() == 1


def test_every_grey_level_comes_back():
    """All 256."""
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(data.to_uint8(data.to_float(pixels)), pixels)
    np.testing.assert_allclose(data.to_float(pixels).numpy(), np.arange(256) / 127.5 - 1, atol=1e-6)


def test_floats_go_to_the_nearest_pixel_and_stay_in_range():
    images = 2 * randn(1, 1, 20, 20)
    nearest = np.clip(np.rint((images.double().numpy() + 1) / 2 * 255), 0, 255)
    assert np.abs(data.to_uint8(images).numpy() - nearest).max() <= 0
    assert data.to_uint8(torch.tensor([-3.0, -1.0, 1.0, 3.0])).tolist() == [0, 0, 255, 255]


def test_batches_are_drawn_with_replacement_from_a_generator(digits):
    """Equal seeds, equal batches; each image is one of the set with its own label; all classes turn up.

    5,000 draws: a class has 500 +- 21 of them, five deviations are allowed.
    """
    first, again, other = (digits.train.batch(5000, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)) and not torch.equal(first[0], other[0])
    pool = {
        (image.numpy().tobytes(), int(label))
        for image, label in zip(digits.train.pixels, digits.train.labels, strict=True)
    }
    drawn = {
        (image.numpy().tobytes(), int(label)) for image, label in zip(data.to_uint8(first[0]), first[1], strict=True)
    }
    assert drawn <= pool and len(drawn) < 5000
    assert (torch.bincount(first[1]) - 500).abs().max() < 5 * 21 + 10  # classes are equally large to within 2 %


def test_an_unknown_dataset_is_refused():
    with pytest.raises(ValueError, match="data.name='digit' is unknown; allowed: 'digits'; did you mean 'digits'"):
        data.load("digit")
