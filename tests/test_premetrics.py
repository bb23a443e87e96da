"""Training losses: the released code's numbers, other ways to compute them, and what makes them premetrics."""

from functools import partial

import numpy as np
import pytest
import torch
from truth import arrays, rand, randn

from rfpp.base import torchvision_shim
from rfpp.features import VGGLPIPS, Classifier, FeatureLPIPS
from rfpp.flow import interpolate
from rfpp.pipeline import shipped
from rfpp.premetrics import LPIPSHuber, LPIPSHuberOverT, bind, full_precision, pseudo_huber, squared_l2


def absolute(first, second):
    """A perceptual distance that is easy to follow: the largest difference, in the shape that lpips returns."""
    return (first - second).abs().flatten(1).amax(dim=1).reshape(-1, 1, 1, 1)


def everyone():
    return [squared_l2, pseudo_huber, LPIPSHuber(absolute), LPIPSHuberOverT(absolute)]


NAMES = ("squared_l2", "pseudo_huber", "lpips_huber", "lpips_huber_over_t")
EVERY = pytest.mark.parametrize("premetric", everyone(), ids=NAMES)


@pytest.mark.parametrize(("function", "key"), [(squared_l2, "l2_squared"), (pseudo_huber, "huber")])
def test_values_are_the_released_implementations(function, key):
    """Tighter than elsewhere: nothing but sums and roots between the input and the number."""
    truth = arrays("premetrics")
    torch.testing.assert_close(function(truth["a"], truth["b"]), truth[key], rtol=1e-5, atol=1e-9)


def pair(n=4, size=4):
    """``a``, ``b``, ``x_t``, ``t`` of a pair and a wrong prediction, with the images behind them."""
    x, z, t = randn(n, 1, size, size), randn(n, 1, size, size, seed=1), 0.1 + 0.8 * rand(n)
    b = z - x + 0.1 * randn(n, 1, size, size, seed=2)
    return x, z, z - x, b, interpolate(x, z, t), t


@EVERY
def test_nought_for_the_same_and_positive_otherwise(premetric):
    """What makes it a premetric, sample by sample."""
    *_, a, b, x_t, t = pair()
    assert premetric(a, a.clone(), x_t, t).tolist() == [0.0] * 4
    assert (premetric(a, b, x_t, t) > 0).all()
    one_differs = torch.cat([a[:3], b[3:]])
    assert (premetric(a, one_differs, x_t, t) > 0).tolist() == [False, False, False, True]


@EVERY
def test_a_single_pixel_is_enough(premetric):
    """Zero only if everything agrees."""
    *_, a, _, x_t, t = pair()
    b = a.clone()
    b[:, 0, 1, 2] += 1e-2
    assert (premetric(a, b, x_t, t) > 0).all()


@EVERY
def test_symmetric_and_one_value_for_each_sample(premetric):
    """Both arguments play the same part here; a sample's value does not depend on its batch."""
    *_, a, b, x_t, t = pair()
    values = premetric(a, b, x_t, t)
    assert values.shape == (4,)
    torch.testing.assert_close(premetric(b, a, x_t, t), values)
    torch.testing.assert_close(premetric(a[2:3], b[2:3], x_t[2:3], t[2:3]), values[2:3])


@pytest.mark.parametrize("scale", [1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("size", [8, 32])
def test_pseudo_huber_is_accurate_for_small_and_large_differences(scale, size):
    """Against numpy's long double; the difference of two nearly equal roots would lose every digit below 1e-4."""
    a = torch.zeros(2, 3, size, size)
    b = scale * randn(2, 3, size, size)
    d = 3 * size * size
    square, c = np.square(b.numpy().astype(np.longdouble)).sum(axis=(1, 2, 3)), np.longdouble(0.00054) * d
    # (sqrt(s + c^2) - c) / d in the form that long double resolves too: c (sqrt(1 + s/c^2) - 1) by expm1 and log1p.
    truth = c * np.expm1(0.5 * np.log1p(square / c**2)) / d
    np.testing.assert_allclose(pseudo_huber(a, b).numpy(), truth.astype(float), rtol=2e-6)


@pytest.mark.parametrize("d", [64, 3072])
def test_pseudo_huber_is_a_parabola_first_and_a_cone_later(d):
    """Its two asymptotes: ``s / (2 c d)`` for differences far below c = 0.00054 d, ``(sqrt(s) - c) / d`` far above."""
    c, zero = 0.00054 * d, torch.zeros(1, d, dtype=torch.float64)

    def huber(norm):
        return pseudo_huber(zero, torch.full((1, d), norm / d**0.5, dtype=torch.float64)).item()

    assert huber(1e-4 * c) == pytest.approx((1e-4 * c) ** 2 / (2 * c * d), rel=1e-6)
    assert huber(1e4 * c) == pytest.approx((1e4 * c - c) / d, rel=1e-6)


@EVERY
def test_the_gradient_is_right(premetric):
    """Finite differences, in float64, with a smooth perceptual distance."""
    if isinstance(premetric, LPIPSHuber):
        premetric = type(premetric)(lambda p, q: (p - q).square().flatten(1).sum(1))
    *_, a, b, x_t, t = (tensor.double() for tensor in pair(n=2, size=2))
    assert torch.autograd.gradcheck(lambda b: premetric(a, b, x_t, t), b.clone().requires_grad_())


@EVERY
def test_the_gradient_is_finite_where_the_prediction_is_right(premetric):
    """A square root at nought has no slope; c keeps away from it."""
    *_, a, _, x_t, t = pair()
    b = a.clone().requires_grad_()
    premetric(a, b, x_t, t).sum().backward()
    assert b.grad.isfinite().all()


@pytest.mark.parametrize(("kind", "power"), [(LPIPSHuber, 0), (LPIPSHuberOverT, -1)])
@pytest.mark.parametrize("t", [1e-5, 0.2, 0.5, 1 - 1e-5])
def test_the_two_terms_and_their_weights(kind, power, t):
    """``(1 - t) huber + LPIPS`` and ``(1 - t) huber + LPIPS / t``, with a distance whose value is known."""
    *_, a, b, x_t, _ = pair()
    perceptual = kind(lambda p, q: torch.full((len(p), 1, 1, 1), 7.0))
    expected = (1 - t) * pseudo_huber(a, b) + 7 * t**power
    torch.testing.assert_close(perceptual(a, b, x_t, torch.full((4,), t)), expected)
    torch.testing.assert_close(perceptual(a, b, x_t, t), expected)


@pytest.mark.parametrize("kind", [LPIPSHuber, LPIPSHuberOverT])
def test_the_images_that_are_compared_are_the_pairs_and_the_predicted_one(kind):
    """``x_t - t a = x`` and ``x_t - t b``, the latter differing from x by ``t (a - b)``."""
    x, _, a, b, x_t, t = pair()
    seen = []
    kind(lambda p, q: seen.append((p, q)) or torch.zeros(len(p)))(a, b, x_t, t)
    torch.testing.assert_close(seen[0][0], x, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(seen[0][1], x + t.reshape(-1, 1, 1, 1) * (a - b), atol=1e-6, rtol=1e-5)


def test_lpips_over_t_does_not_vanish_at_small_times():
    """Section 4.2: the image moves by t times the velocity's error, so LPIPS without 1/t has a gradient of order t."""
    *_, a, b, x_t, _ = pair()

    def gradient(kind, t):
        velocity = b.clone().requires_grad_()
        loss = kind(lambda p, q: (p - q).abs().flatten(1).sum(1))(a, velocity, x_t, t)
        huber = (1 - t) * pseudo_huber(a, velocity)
        return torch.autograd.grad((loss - huber).sum(), velocity)[0].norm().item()

    assert gradient(LPIPSHuber, 1e-3) == pytest.approx(1e-3 * gradient(LPIPSHuber, 1.0), rel=1e-2)
    assert gradient(LPIPSHuberOverT, 1e-3) == pytest.approx(gradient(LPIPSHuberOverT, 1.0), rel=1e-2)


def test_lpips_on_digits_is_lpips():
    """Zhang et al. (2018) in numpy: features to unit length over channels, squared difference, mean over positions."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        trunk = Classifier((6, 10), "silu").eval()
    first, second = randn(3, 1, 8, 8), randn(3, 1, 8, 8, seed=1)
    truth = np.zeros(3)
    with torch.no_grad():
        for p, q in zip(trunk.feature_maps(first), trunk.feature_maps(second), strict=True):
            p, q = (m.numpy() / np.linalg.norm(m.numpy(), axis=1, keepdims=True) for m in (p, q))
            truth += np.square(p - q).sum(axis=1).mean(axis=(1, 2))
    np.testing.assert_allclose(FeatureLPIPS(trunk)(first, second).detach().flatten().numpy(), truth, rtol=1e-4)


def test_a_class_is_given_the_distance_and_anything_else_is_left_alone():
    """The distance is fetched only where it is needed."""
    for kind in (LPIPSHuber, LPIPSHuberOverT, partial(LPIPSHuber)):
        assert bind(kind, lambda: absolute).perceptual is absolute
    own = LPIPSHuber(absolute)
    for premetric in (squared_l2, pseudo_huber, own):
        assert bind(premetric, None) is premetric


def test_lpips_keeps_its_precision_where_autocast_would_not():
    """Two images that differ by less than bfloat16 resolves, at a small time: the value of full precision."""
    t, b = torch.full((4,), 1e-3), randn(4, 1, 8, 8, seed=1)
    a, x_t = randn(4, 1, 8, 8), randn(4, 1, 8, 8, seed=2)
    premetric = LPIPSHuberOverT(FeatureLPIPS(shipped.load("digits-perceptual")))
    with torch.autocast("cpu", torch.bfloat16):
        found = premetric(a, b, x_t, t)
    torch.testing.assert_close(found, premetric(a, b, x_t, t))


@pytest.mark.parametrize("setting", [True, False])
def test_full_precision_leaves_the_choice_of_kernels_alone(setting):
    """A training that asked for deterministic kernels gets them in LPIPS, too."""
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=True, benchmark=setting, deterministic=setting, allow_tf32=True):
        with full_precision("cpu"):
            assert (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == (setting, setting, False)
        assert (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == (setting, setting, True)


def test_lpips_gradient_keeps_the_settings_of_its_value(monkeypatch):
    """A backward pass comes when the settings are those outside again. Each operation in it is asked what it found."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # tests on a GPU have it off
    seen = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            seen.append((torch.backends.cudnn.allow_tf32, torch.is_autocast_enabled("cpu")))
            return gradient

    *_, a, b, x_t, t = pair()
    with torch.autocast("cpu", torch.bfloat16):
        loss = LPIPSHuberOverT(lambda p, q: Watched.apply(p - q).square().sum(dim=(1, 2, 3)))(
            a, b.requires_grad_(), x_t, t
        )
        loss.sum().backward()
    assert seen == [(False, False)] and torch.backends.cudnn.allow_tf32


def test_lpips_has_a_gradient_where_its_network_sees_nothing():
    """With these biases all features are nought. Their length, which LPIPS divides by, has no gradient there, but what
    comes before has: the last thing in each stage of VGG-16 is a ReLU, which passes nothing on."""
    vgg16 = torchvision_shim.load("torchvision.models").vgg16

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        weights = vgg16(weights=None).state_dict()
    a = randn(1, 3, 16, 16).requires_grad_()
    for bias, is_blind in ((1e3, True), (0, False)):
        lpips = VGGLPIPS({name: w if w.ndim > 1 else w - bias for name, w in weights.items()}, resolution=32)
        (gradient,) = torch.autograd.grad(lpips(a, a.detach() + 0.1).sum(), a)
        assert gradient.isfinite().all() and bool((gradient == 0).all()) == is_blind
