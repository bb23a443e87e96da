"""Data: scikit-learn's own arrays, a split without overlap, and pixels that come back as they went in.

CIFAR-10 is written here byte by byte, and images by PIL into folders, zips and tars of a few pixels.
"""

import functools
import hashlib
import http.server
import io
import json
import math
import os
import tarfile
import threading
import types
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from truth import randn

from rfpp import data, presets
from rfpp.base import paths
from rfpp.data import cifar as cifar_module
from rfpp.data import decoding, folders
from rfpp.pipeline import sources
from rfpp.pipeline.plan import Plan


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
    with pytest.raises(ValueError, match="data.name='digit' is unknown; allowed: 'digits', .*; did you mean 'digits'"):
        data.load("digit")


@pytest.mark.parametrize(
    ("name", "option"), [("digits", {"path": "somewhere"}), ("digits", {"resolution": 8}), ("photos", {"path": "here"})]
)
def test_digits_and_photographs_come_from_nowhere_and_digits_in_one_size(name, option):
    with pytest.raises(ValueError, match=f"data.{next(iter(option))}=.*, but data.name='{name}' comes .*; leave it"):
        data.load(name, **option)


# Photographs


@pytest.fixture
def numbered(monkeypatch):
    """Two photographs in place of scikit-learn's; each pixel has a number of its own, in its three channels."""
    numbers = np.arange(2 * 427 * 640, dtype="<u4").reshape(2, 427, 640)
    images = numbers[..., None].view(np.uint8)[..., :3]
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: types.SimpleNamespace(images=list(images)))


def numbers(images):
    """The numbers of pixels, ``(N, H, W)``."""
    return (images.pixels.long() * torch.tensor([1, 256, 65536])[:, None, None]).sum(dim=1)


@pytest.mark.parametrize(
    ("size", "options"),
    [(8, {}), (32, {}), (32, {"held_out": 0.5, "stride": 3, "patches": 500}), (106, {"patches": 36})],
)
def test_patches_are_squares_of_one_photograph_and_splits_share_no_pixel(numbered, size, options):
    found = data.photos(size, **options)
    for split in (found.train, found.held_out):
        corners = numbers(split)[:, :1, :1]
        square = torch.arange(size)[:, None] * 640 + torch.arange(size)
        assert torch.equal(numbers(split), corners + square)
        assert (corners.flatten() % 640 + size <= 640).all() and len(corners.unique()) == len(split)
        assert torch.equal(split.labels, corners.flatten() // (427 * 640)) and len(split.labels.unique()) == 2
    assert not torch.isin(numbers(found.held_out), numbers(found.train)).any()
    share = options.get("held_out", 0.1)
    assert len(found.train) == options.get("patches", 2000) and found.classes == 2
    assert len(found.held_out) / (len(found.train) + len(found.held_out)) == pytest.approx(share, abs=0.02)


def test_patches_show_the_photographs(monkeypatch):
    """Their pixels are scikit-learn's at the places that numbered ones tell, the same each time."""
    found, again = data.photos(16), data.photos(16)
    assert torch.equal(found.train.pixels, again.train.pixels)
    assert torch.equal(found.held_out.pixels, again.held_out.pixels)
    photographs = np.stack(load_sample_images().images).reshape(-1, 3)
    with monkeypatch.context() as patched:
        numbered.__wrapped__(patched)
        places = numbers(data.photos(16).train)
    assert torch.equal(found.train.pixels, torch.from_numpy(photographs[places]).permute(0, 3, 1, 2))


def test_grey_patches_are_the_luma_of_those_in_colour():
    """ITU-R BT.601's weights, to the nearest grey level or the one beside it."""
    colour, grey = data.photos(24), data.photos(24, colour=False)
    luma = (colour.train.pixels.double() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
    assert grey.train.shape == (1, 24, 24) and (grey.train.pixels - luma).abs().max() <= 1
    assert torch.equal(grey.train.labels, colour.train.labels)


def test_neighbouring_pixels_are_as_alike_at_every_size():
    """What a curve over the size rests on: the mean squared difference of neighbours, within 10 % for 8, 16 and 32.

    It is of 2,000 patches that overlap, so it varies by some percent. Patches of 32 scaled down to 8 differ by a third.
    """
    images = {size: data.photos(size).train.floats() for size in (8, 16, 32)}
    cut = [float(each.diff(dim=3).square().mean()) for each in images.values()]
    scaled = float(torch.nn.functional.avg_pool2d(images[32], 4).diff(dim=3).square().mean())
    assert max(cut) < 1.1 * min(cut) and abs(scaled / cut[0] - 1) > 0.2


def test_photographs_are_loaded_by_name():
    assert data.load("photos").train.shape == (3, 32, 32)
    found = data.load("photos", resolution=16, held_out=0.25)
    assert found.train.shape == (3, 16, 16) and len(found.held_out) == 667 and found.name == "photos"


def test_a_preset_can_be_about_photographs():
    settings = {"data": {"name": "photos", "resolution": 16}, "features": {"kind": "standard"}}
    preset = presets.load("smoke", {**settings, "teacher": {"file": "a.safetensors"}})
    source = Plan(preset).images
    assert source == sources.Source("photos", resolution=16, held_out=0.05)
    assert source.load().train.shape == (3, 16, 16) and len(source.load().held_out) == 105


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        ({"size": 0}, ValueError, r"size \(data.resolution\)=0 is too small; an integer of at least 1"),
        ({"size": 107}, ValueError, r"size \(data.resolution\)=107 is too large; at most 106"),
        ({"size": 8.0}, TypeError, r"size \(data.resolution\)=8.0 is a float"),
        ({"stride": 0}, ValueError, "stride=0 is too small"),
        ({"patches": 1}, ValueError, "patches=1 is too small; an integer of at least 2"),
        ({"patches": 20_000}, ValueError, "patches=20000 with .* needs 20000 training patches, and there are 15884"),
        ({"size": 106, "patches": 40, "held_out": 0.2}, ValueError, "needs 40 training patches, and there are 38"),
        ({"size": 106, "patches": 38, "held_out": 0.22}, ValueError, "needs 11 held-out patches, and there are 10"),
        ({"held_out": 1}, ValueError, "data.held_out=1 is not a share"),
        ({"held_out": math.nan}, ValueError, "data.held_out=nan is not a share"),
    ],
)
def test_patches_that_cannot_be_cut_are_refused(options, error, complaint):
    with pytest.raises(error, match=complaint):
        data.photos(**options)


# CIFAR-10

BATCHES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]


@pytest.fixture(scope="module")
def cifar():
    """Three training images a batch, four test images: ``(19, 32, 32, 3)`` and their classes."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, (19, 32, 32, 3), dtype=np.uint8), random.integers(0, 10, 19)


def batches(cifar):
    """The files' contents: for each image its class, then all reds, all greens and all blues, row by row."""
    records = [
        bytes([label]) + b"".join(bytes([*image[:, :, colour].ravel()]) for colour in range(3))
        for image, label in zip(*cifar, strict=True)
    ]
    return {name: b"".join(records[3 * i : 3 * i + (3 if i < 5 else 4)]) for i, name in enumerate(BATCHES)}


def tar(path, contents):
    """An archive, packed as its name says."""
    with tarfile.open(path, f"w:{path.suffix[1:].replace('tar', '')}") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def tree(folder, contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def pack(path, contents):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def is_cifar(found, cifar):
    images, labels = (torch.from_numpy(part) for part in cifar)
    images = images.permute(0, 3, 1, 2)
    splits = ((found.train, slice(15)), (found.held_out, slice(15, None)))
    return all(
        torch.equal(split.pixels, images[part]) and torch.equal(split.labels, labels[part]) for split, part in splits
    )


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin/"])
@pytest.mark.parametrize("form", ["folder", "tar.gz", "tar"])
def test_cifar_comes_back_in_order(tmp_path, cifar, inside, form):
    """What else lies there is passed over; the order of files in the archive does not count."""
    contents = {f"{inside}{name}": content for name, content in reversed(batches(cifar).items())}
    contents |= {f"{inside}readme.html": b"", f"{inside}batches.meta.txt": b"airplane"}
    path = tree(tmp_path, contents) if form == "folder" else tar(tmp_path / f"cifar.{form}", contents)
    found = data.load("cifar10", path)
    assert is_cifar(found, cifar) and found.classes == 10 and found.name == "cifar10"
    assert found.train.shape == (3, 32, 32)
    assert found.train.pixels.dtype == torch.uint8 and found.train.labels.dtype == torch.int64


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_cifar_is_downloaded_and_checked(tmp_path, cifar, monkeypatch):
    """From a server on this machine; the second time without it. An archive with another checksum is refused."""
    served = tmp_path / "served"
    served.mkdir()
    archive = tar(served / "cifar-10-binary.tar.gz", {f"a/{name}": part for name, part in batches(cifar).items()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=served))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(cifar_module, "CIFAR10_URL", f"http://127.0.0.1:{server.server_port}/{archive.name}")
    with pytest.raises(ValueError, match=f"expected {data.CIFAR10_SHA256}; what was downloaded is deleted"):
        data.load("cifar10", folder=tmp_path / "kept")
    monkeypatch.setattr(cifar_module, "CIFAR10_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    assert is_cifar(data.load("cifar10", folder=tmp_path / "kept"), cifar)
    server.shutdown()
    server.server_close()
    assert is_cifar(data.load("cifar10", folder=tmp_path / "kept"), cifar)
    with pytest.raises(OSError, match="cannot download .* or put the file at"):
        data.load("cifar10", folder=tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"test_batch.bin": bytes(3072)}, "test_batch.bin has 3072 bytes; whole records of 3073 are needed"),
        ({"data_batch_2.bin": b""}, "data_batch_2.bin has 0 bytes"),
        ({"data_batch_3.bin": b"\n" + bytes(3072)}, "data_batch_3.bin has the class 10; allowed: 0..9"),
        ({"deeper/test_batch.bin": bytes(3073)}, "two files called test_batch.bin; pass the folder of one"),
    ],
)
def test_cifar_that_is_not_whole_is_refused(tmp_path, cifar, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        data.load("cifar10", tree(tmp_path, batches(cifar) | change))


def test_the_binary_version_of_cifar_is_asked_for(tmp_path, cifar):
    """A file that is missing, and the version that is pickled."""
    contents = batches(cifar)
    del contents["data_batch_4.bin"]
    with pytest.raises(FileNotFoundError, match="lacks data_batch_4.bin; .* binary version of CIFAR-10, https://"):
        data.load("cifar10", tree(tmp_path / "a", contents))
    pickled = tree(tmp_path / "b", {f"cifar-10-batches-py/{name[:-4]}": b"" for name in BATCHES})
    with pytest.raises(FileNotFoundError, match=r"lacks data_batch_1.bin, .*, \.\.\.; .* no ending, is not read"):
        data.load("cifar10", pickled)


def test_a_damaged_cifar_archive_is_refused(tmp_path, cifar):
    path = tar(tmp_path / "cifar.tar.gz", batches(cifar))
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ValueError, match="cifar.tar.gz.* is damaged"):
        data.load("cifar10", path)


# Images of any folder or archive


def encode(pixels, form="PNG", **options):
    """A file's content, of ``(H, W)`` or ``(H, W, C)``: grey or in colour, with or without alpha."""
    file = io.BytesIO()
    pixels = np.asarray(pixels, dtype=np.uint8)
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels).save(file, form, **options)
    return file.getvalue()


def flat(*colour, size=(4, 4)):
    """An image of one colour."""
    return encode(np.broadcast_to(np.array(colour, dtype=np.uint8), (*size, len(colour))))


def colours(images):
    """The colours of images of one colour, in their order."""
    assert (images.pixels == images.pixels[:, :, :1, :1]).all()
    return [tuple(pixel) for pixel in images.pixels[:, :, 0, 0].tolist()]


def together(found):
    """Each image's first number with its label, over both splits."""
    splits = (found.train, found.held_out)
    return sorted((colour[0], int(label)) for s in splits for colour, label in zip(colours(s), s.labels, strict=True))


@pytest.fixture
def load(tmp_path):
    """``data.load("images", ...)`` that decodes into a folder of its own."""
    return functools.partial(data.load, "images", folder=tmp_path / "decoded")


FORMS = {
    "folder": tree, "images.zip": pack, "images.tar": tar, "images.tar.gz": tar, "images.tar.xz": tar
}  # fmt: skip


@pytest.fixture(params=FORMS)
def put(request, tmp_path):
    """Puts contents into a folder or an archive and says where."""

    def make(contents):
        if request.param != "folder":
            (tmp_path / "in").mkdir(exist_ok=True)
        return FORMS[request.param](tmp_path / "in" / request.param, contents)

    return make


def test_a_dataset_as_edm_writes_it(put, load):
    """Labels by name; the numbered folders are not classes, and the number of classes is one more than the largest."""
    names = [f"{i // 4:05}/img{i:08}.png" for i in range(8)]
    contents = {name: flat(i, 0, 0) for i, name in enumerate(names)}
    labels = {"labels": [[name, i % 3 * 2] for i, name in enumerate(names)]}
    found = load(put(contents | {"dataset.json": json.dumps(labels).encode()}))
    assert found.classes == 5 and together(found) == [(i, i % 3 * 2) for i in range(8)]
    assert len(found.held_out) == 1 and found.name == "images" and found.train.shape == (3, 4, 4)


@pytest.mark.parametrize("table", [{"dataset.json": b'{"labels": null}'}, {}])
def test_numbered_folders_are_no_classes(tmp_path, load, table):
    found = load(tree(tmp_path / "in", {f"{i // 2:05}/{i}.png": flat(i, 0, 0) for i in range(4)} | table))
    assert found.classes == 0 and together(found) == [(i, 0) for i in range(4)]


def test_folders_are_classes(put, load):
    """In alphabetical order, whatever lies deeper; hidden files, those of macOS and other kinds are passed over."""
    contents = {"dog/1.png": 10, "dog/more/2.PNG": 11, "cat/3.png": 0, "cat/4.png": 1, "eel/5.png": 20}
    contents = {name: flat(value, 0, 0) for name, value in contents.items()}
    rest = {"cat/.5.png": b"", "__MACOSX/cat/._3.png": b"", ".hidden/6.png": b"", "cat/list.txt": b"", "a.npy": b""}
    found = load(put(contents | rest))
    assert found.classes == 3 and together(found) == [(0, 0), (1, 0), (10, 1), (11, 1), (20, 2)]


@pytest.mark.parametrize("other", ["test", "val"])
@pytest.mark.parametrize("around", ["", "data/"])
def test_folders_can_be_the_split(put, load, other, around):
    """And those below are the classes, also where one split lacks one; a folder around everything does not count."""
    contents = {
        "train/b/1.png": 1,
        "train/a/2.png": 2,
        "train/c/3.png": 3,
        f"{other}/c/4.png": 4,
        f"{other}/a/5.png": 5,
    }
    found = load(put({f"{around}{name}": flat(value, 0, 0) for name, value in contents.items()}))
    assert found.classes == 3
    labelled = [
        sorted((colour[0], label) for colour, label in zip(colours(split), split.labels.tolist(), strict=True))
        for split in (found.train, found.held_out)
    ]
    assert labelled == [[(1, 1), (2, 0), (3, 2)], [(4, 2), (5, 0)]]


def test_images_outside_of_folders_have_no_classes(tmp_path, load):
    """One of them is enough; the split of train and test is not about classes either."""
    images = {f"{folder}{i}.png": flat(i, 0, 0) for i, folder in enumerate(["a/", "b/", "", "b/"])}
    assert load(tree(tmp_path / "a", images)).classes == 0
    images = {"train/a/1.png": flat(1, 0, 0), "train/b/2.png": flat(2, 0, 0), "test/3.png": flat(3, 0, 0)}
    found = load(tree(tmp_path / "b", images))
    assert found.classes == 0 and len(found.train) == 2 and found.held_out.labels.tolist() == [0]


def test_the_share_of_images_that_is_held_out(tmp_path, load):
    """Disjoint and complete, the same from a folder and from a zip, and in mixed order: the first half of each split
    is not its lower half."""
    images = {f"{i:03}.png": flat(i, 0, 0) for i in range(40)}
    folder, archive = tree(tmp_path / "in", images), pack(tmp_path / "in.zip", images)
    one, other = load(folder, held_out=0.25), load(archive, held_out=0.25)
    assert torch.equal(one.held_out.pixels, other.held_out.pixels)
    train, held_out = ([colour[0] for colour in colours(split)] for split in (one.train, one.held_out))
    assert len(held_out) == 10 and sorted(train + held_out) == list(range(40))
    for split in (train, held_out):
        assert max(split[: len(split) // 2]) > min(split[len(split) // 2 :])
    assert len(load(folder).held_out) == 4 and len(load(folder, held_out=1e-9).held_out) == 1


def test_grey_images(tmp_path, load):
    """One channel if all are grey, with or without alpha; the same values in three as soon as one is in colour."""
    images = {"1.png": flat(1), "2.png": flat(2, 255), "3.png": flat(3), "4.bmp": encode(np.full((4, 4), 4), "BMP")}
    grey = load(tree(tmp_path / "in", images))
    assert grey.train.shape == (1, 4, 4) and together(grey) == [(i, 0) for i in range(1, 5)]
    both = load(tree(tmp_path / "in", {"5.png": flat(5, 6, 7)}))
    assert sorted(colours(both.train) + colours(both.held_out)) == [(i,) * 3 for i in range(1, 5)] + [(5, 6, 7)]


def test_many_grey_images(tmp_path, load):
    """More than are copied at a time."""
    values = np.random.default_rng(0).integers(0, 256, 1030)
    images = {f"{i:04}.bmp": encode(np.full((1, 1), value), "BMP") for i, value in enumerate(values)}
    found = load(pack(tmp_path / "in.zip", images))
    pixels = torch.cat([found.train.pixels, found.held_out.pixels]).flatten()
    assert sorted(pixels.tolist()) == sorted(values.tolist()) and found.train.shape == (1, 1, 1)


def test_alpha_is_dropped(tmp_path, load):
    """Not blended: the colour below stays, also with a half-transparent entry of a palette."""
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 7, 8, 9])
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=bytes([255, 100]))
    images = {"1.png": flat(1, 2, 3, 0), "2.png": flat(4, 5, 6, 128), "3.png": file.getvalue()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = load(tree(tmp_path / "in", images))
    assert sorted(colours(found.train) + colours(found.held_out)) == [(1, 2, 3), (4, 5, 6), (7, 8, 9)]


def test_formats(tmp_path, load):
    """JPEG comes back within its rounding, lossless WebP and BMP exactly; a turned photograph is not turned."""
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8, 1) * np.array([1, 2, 3], dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = {
        "train/1.webp": encode(ramp, "WEBP", lossless=True),
        "train/2.bmp": encode(ramp, "BMP"),
        "train/3.png": encode(ramp, exif=exif),
        "test/4.jpg": encode(ramp, "JPEG", quality=100, subsampling=0, exif=exif),
        "test/5.JPEG": encode(ramp, "JPEG", quality=100, subsampling=0),
    }
    found = load(tree(tmp_path / "in", contents))
    expected = torch.from_numpy(ramp).permute(2, 0, 1)
    assert all(torch.equal(pixels, expected) for pixels in found.train.pixels)
    assert (found.held_out.pixels.int() - expected.int()).abs().max() <= 3


# Sizes


def one(found):
    """The three equal images of a dataset, ``(H, W, C)``."""
    pixels = torch.cat([found.train.pixels, found.held_out.pixels])
    assert len(pixels) == 3 and (pixels == pixels[0]).all()
    return pixels[0].permute(1, 2, 0).numpy()


@pytest.fixture
def resized(tmp_path, load):
    """An image ``(H, W, C)``, resized."""

    def make(pixels, resolution, crop):
        folder = tree(tmp_path / "in", dict.fromkeys(["a.png", "b.png", "c.png"], encode(pixels)))
        return one(load(folder, resolution=resolution, crop=crop))

    return make


def noise(*shape):
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def lanczos(x):
    return np.sinc(x) * np.sinc(x / 3) * (abs(x) < 3)


def bicubic(x):
    """Keys' kernel with a = -1/2."""
    x = abs(x)
    return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))


def resample(pixels, height, width, kernel):
    """The kernel, stretched where pixels get fewer, at the centres of the new pixels: rows first, 8 bits in between."""
    for size in (width, height):
        pixels = pixels.swapaxes(0, 1)
        scale = len(pixels) / size
        centres = (np.arange(size) + 0.5) * scale
        weights = kernel((np.arange(len(pixels)) + 0.5 - centres[:, None]) / max(scale, 1))
        weights /= weights.sum(1, keepdims=True)
        pixels = np.clip(np.rint(np.einsum("ij,j...->i...", weights, pixels.astype(float))), 0, 255)
    return pixels


def halve(pixels):
    """Means of two columns, then of two rows, each in 8 bits: halves go up."""
    height, width, channels = pixels.shape
    narrow = (pixels.reshape(height, width // 2, 2, channels).sum(2, dtype=int) + 1) // 2
    return (narrow.reshape(height // 2, 2, width // 2, channels).sum(1) + 1) // 2


@pytest.mark.parametrize(("shape", "size"), [((20, 12, 3), 7), ((5, 8, 3), 11), ((9, 9, 3), 9)])
def test_the_whole_image_is_resized(resized, shape, size):
    """Lanczos with three lobes, as it is defined. Either direction rounds, so that two of 256 levels are allowed."""
    pixels = noise(*shape)
    assert np.abs(resized(pixels, size, None) - resample(pixels, size, size, lanczos)).max() <= 2


@pytest.mark.parametrize(("shape", "part"), [((10, 21, 3), np.s_[:, 5:15]), ((21, 10, 3), np.s_[5:15])])
def test_the_largest_centred_square_is_resized(resized, shape, part):
    """What lies outside does not seep in."""
    pixels = noise(*shape)
    assert np.abs(resized(pixels, 4, "center") - resample(pixels[part], 4, 4, lanczos)).max() <= 2


def test_images_are_halved_and_cropped_as_for_imagenet(resized):
    """40x56 is halved twice, is then 10x14, and goes on to 8x11; or once more, exactly, to 5x7. 5x3 only grows."""
    pixels = noise(40, 56, 3)
    expected = resample(halve(halve(pixels)), 8, 11, bicubic)[:, 1:9]
    assert np.abs(resized(pixels, 8, "dhariwal") - expected).max() <= 1
    assert np.array_equal(resized(pixels, 5, "dhariwal"), halve(halve(halve(pixels)))[:, 1:6])
    pixels = noise(5, 3, 3)
    assert np.abs(resized(pixels, 6, "dhariwal") - resample(pixels, 10, 6, bicubic)[2:8]).max() <= 1


@pytest.mark.parametrize("crop", ["center", "dhariwal"])
@pytest.mark.parametrize(("shape", "part"), [((6, 11, 3), np.s_[:, 2:8]), ((12, 6, 3), np.s_[3:9])])
def test_where_the_centre_is(resized, crop, shape, part):
    """Exactly, where nothing is left to resize."""
    pixels = noise(*shape)
    assert np.array_equal(resized(pixels, 6, crop), pixels[part])


@pytest.mark.parametrize("crop", [None, *data.CROPS])
def test_grey_images_are_resized_in_grey(resized, crop):
    """As one of the channels of the same image in colour."""
    grey = noise(14, 14)
    in_colour = resized(np.stack([grey] * 3, axis=-1), 5, crop)
    assert np.array_equal(resized(grey, 5, crop), in_colour[:, :, :1])


def test_images_of_another_size_are_counted_and_named(tmp_path, load):
    images = {f"{i}.png": flat(i, 0, 0) for i in range(4)} | {f"{i}.png": flat(i, size=(4, i)) for i in range(5, 9)}
    folder = tree(tmp_path / "in", images)
    complaint = (
        r"4 of 8 images are not of the size 4x4 of 0.png: 5.png \(5x4\), 6.png \(6x4\), 7.png \(7x4\), \.\.\.; "
        "pass data.resolution"
    )
    with pytest.raises(ValueError, match=complaint):
        load(folder)
    assert load(folder, resolution=4).train.shape == (3, 4, 4)
    with pytest.raises(ValueError, match=r"3 of 3 images are not square: 1.png \(2x4\)"):
        load(tree(tmp_path / "other", {f"{i}.png": flat(i, size=(4, 2)) for i in range(1, 4)}))


# What is damaged, too large, or not there


def bitmap(width, height):
    """A PNG that says it is this large and has no pixels."""

    def chunk(kind, content):
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_images_that_cannot_be_read_are_counted_and_named(put, tmp_path, load):
    """All in one error, and nothing is kept: cut off, of another kind, empty, 16 bits, too large, no pixels."""
    wide = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(wide, "PNG")
    bad = {
        "a.png": encode(noise(4, 4, 3))[:-40], "b.jpg": b"GIF89a", "c.webp": b"", "d.png": wide.getvalue(),
        "e.png": bitmap(16385, 1), "f.png": bitmap(16384, 16384), "g.png": bitmap(4, 4),
    }  # fmt: skip
    good = {f"{i}.png": flat(i, 0, 0) for i in range(3)}
    with pytest.raises(
        ValueError, match=r"7 of 10 images cannot be read: a.png \(.*\), b.jpg \(it is not a PNG.*\), c.webp .*\.\.\.$"
    ):
        load(put(good | bad))
    assert [path.suffix for path in (tmp_path / "decoded").iterdir()] == [".lock"]
    for name, why in (
        ("d.png", "mode is I;16; 8 bits"), ("e.png", "it is 16385x1; at most 16384 pixels a side"), ("f.png", "bomb")
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"1 of 4 images cannot be read: {name} \(.*{why}"):
            load(tree(tmp_path / name, good | {name: bad[name]}))


def test_images_must_not_grow_without_bounds(tmp_path, load):
    """A line of a thousand pixels, whose shorter side is to have a hundred, would be a hundred thousand long."""
    folder = tree(tmp_path / "in", {f"{i}.png": flat(i, size=(1, 1000)) for i in range(3)})
    with pytest.raises(
        ValueError, match=r"3 of 3 images cannot be read: 0.png \(it is 100000x100; at most .* pixels a side"
    ):
        load(folder, resolution=100, crop="dhariwal")


@pytest.mark.parametrize("form", ["images.zip", "images.tar.gz"])
def test_files_that_unfold_to_too_much_are_refused(tmp_path, load, form):
    """65 MiB of zeros, packed to less than a hundredth, are not unfolded; neither as an image nor as labels."""
    images = {f"{i}.png": flat(i, 0, 0) for i in range(3)}
    (tmp_path / "labels").mkdir()
    bomb = bytes(65 << 20)
    with pytest.raises(ValueError, match=r"1 of 4 images cannot be read: 9.png \(it would unfold to 68157440 bytes"):
        load(FORMS[form](tmp_path / form, images | {"9.png": bomb}))
    with pytest.raises(ValueError, match=r"dataset.json is not .*it would unfold to 68157440 bytes"):
        load(FORMS[form](tmp_path / "labels" / form, images | {"dataset.json": bomb}))


@pytest.mark.parametrize("form", [form for form in FORMS if form != "folder"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95])
def test_an_archive_that_was_cut_off_is_refused(tmp_path, load, form, share):
    """Wherever it was, also within a header, where an unpacked tar only seems to end early."""
    archive = FORMS[form](tmp_path / form, {f"{i}.png": encode(noise(40, 40, 3)) for i in range(9)})
    content = archive.read_bytes().rstrip(b"\0")  # a tar ends with zeros that may be missing
    archive.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=f"{form}' has no images|{form} is damaged or of another kind"):
        load(archive)


def test_a_tar_that_was_cut_off_between_two_files(tmp_path, load):
    """Within the second header, at its beginning, and within the zeros that fill the first file's last block."""
    archive = tar(tmp_path / "in.tar", {f"{i}.png": flat(i, 0, 0) for i in range(9)})
    content = archive.read_bytes()
    for length in (4096 + 700, 4096, 4096 - 100):
        archive.write_bytes(content[:length])
        with pytest.raises(ValueError, match="in.tar is damaged or of another kind"):
            load(archive)


def test_a_damaged_image_in_a_zip(tmp_path, load):
    """Its checksum tells; the others are fine."""
    archive = tmp_path / "in.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for i in range(4):
            file.writestr(f"{i}.bmp", encode(np.full((4, 4), 100 + i), "BMP"))
    archive.write_bytes(archive.read_bytes().replace(bytes([102] * 16), bytes([99] * 16)))
    with pytest.raises(ValueError, match=r"1 of 4 images cannot be read: 2.bmp \(Bad CRC-32"):
        load(archive)


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (b"{", "dataset.json is not .* class"),
        (b"[]", "dataset.json is not"),
        (b"{}", "dataset.json is not"),
        (b"[" * 100_000, "dataset.json is not"),
        (b'{"labels": [["0.png"]]}', "dataset.json is not"),
        (
            b'{"labels": [["0.png", 0], ["1.png", 0.5], ["2.png", -1]]}',
            "has 2 labels that are not .*: 1.png: 0.5, 2.png",
        ),
        (b'{"labels": [["0.png", 1e99], ["1.png", true], ["2.png", 9999999999]]}', "has 3 labels that are not classes"),
        (b'{"labels": [["1.png", 0]]}', "has no label for 2 of 3 images: 0.png, 2.png$"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, load, table, complaint):
    images = {f"{i}.png": flat(i, 0, 0) for i in range(3)}
    with pytest.raises(ValueError, match=complaint):
        load(tree(tmp_path / "in", images | {"dataset.json": table}))


def test_a_name_twice_is_refused(tmp_path, load):
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        warnings.simplefilter("ignore")
        for name in ("a.png", "b.png", "a.png"):
            archive.writestr(name, flat(1))
    with pytest.raises(ValueError, match="in.zip has two files called a.png"):
        load(tmp_path / "in.zip")


def test_too_few_images_are_refused(tmp_path, load):
    folder = tree(tmp_path / "in", {"readme.txt": b"", ".1.png": flat(1)})
    with pytest.raises(ValueError, match=r"data.path='.*' has no images; .* end in .png, .jpg, .jpeg, .webp, .bmp"):
        load(folder)
    with pytest.raises(ValueError, match="has 2 images, and data.held_out=0.1 leaves 1 to train on; at least 2"):
        load(tree(folder, {"1.png": flat(1), "2.png": flat(2)}))
    assert len(load(tree(folder, {"3.png": flat(3)})).train) == 2
    with pytest.raises(ValueError, match="has 3 images, and data.held_out=0.6 leaves 1 to train on"):
        load(folder, held_out=0.6)


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ({"path": None}, "data.path=None, but data.name='images' needs the folder, zip or tar"),
        ({"resolution": 0}, "data.resolution=0 is too small"),
        ({"resolution": 16385}, "data.resolution=16385 is too large; at most 16384"),
        ({"crop": "centre"}, "data.crop='centre' is unknown; allowed: 'center', 'dhariwal'; did you mean 'center'"),
        ({"held_out": 0}, "data.held_out=0 is not a share; a number between 0 and 1"),
        ({"held_out": 1.0}, "data.held_out=1.0 is not a share"),
    ],
)
def test_wrong_settings_are_refused_before_anything(tmp_path, load, option, complaint):
    with pytest.raises(ValueError, match=complaint):
        load(**{"path": tmp_path} | option)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["cifar10", "images"])
def test_a_path_that_does_not_exist(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="data.path='.*nowhere' does not exist"):
        data.load(name, tmp_path / "nowhere")


def test_a_file_that_is_no_archive(tmp_path, load):
    (tmp_path / "image.png").write_bytes(flat(1))
    with pytest.raises(ValueError, match="image.png is damaged or of another kind .*; a folder, a .zip, .tar"):
        load(tmp_path / "image.png")


def test_a_full_disk_is_noticed_before(tmp_path, load, monkeypatch):
    """A mapped file would end the process."""
    monkeypatch.setattr(decoding.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 143}))
    with pytest.raises(OSError, match="decoded has 143 bytes left, but 144 are needed; pass another folder"):
        load(tree(tmp_path / "in", {f"{i}.png": flat(i, 0, 0) for i in range(3)}))


def test_links_are_followed_but_not_in_circles(tmp_path, load):
    images = tree(tmp_path / "in", {f"{i % 2}/{i}.png": flat(i, 0, 0) for i in range(4)})
    tree(tmp_path / "elsewhere", {"7.png": flat(7, 0, 0)})
    (images / "2").symlink_to(tmp_path / "elsewhere")
    (images / "1" / "again").symlink_to(images)
    assert together(load(images)) == [(0, 0), (1, 1), (2, 0), (3, 1), (7, 2)]


# What is decoded once


@pytest.fixture
def decoded(put, load, tmp_path, monkeypatch):
    """Images in any form that were decoded, where from, and the decoder taken away."""
    source = put({f"{i % 2}/{i}.png": flat(i, 2, 3) for i in range(6)})
    first = load(source)
    monkeypatch.setattr(decoding, "_decode", None)
    return source, first


def test_images_are_decoded_once(decoded, load, tmp_path):
    """They are mapped, and equal; writing into them does not reach the files."""
    source, first = decoded
    folder = next(path for path in (tmp_path / "decoded").iterdir() if path.is_dir())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(before) == ["index.json", "labels.npy", "pixels.npy"]
    again = load(source)
    assert together(again) == together(first) == [(i, i % 2) for i in range(6)] and again.classes == 2
    again.train.pixels.zero_()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert torch.equal(load(str(source)).train.pixels, first.train.pixels)


def test_what_makes_them_decoded_again(decoded, load):
    """A setting, a file more, and a file that was written again; not the way of cropping where nothing is resized."""
    source, _ = decoded
    load(source, crop="dhariwal")

    def fails(**options):
        with pytest.raises(ValueError, match="6 of 6 images cannot be read"):
            load(source, **options)

    fails(resolution=4)
    fails(resolution=4, crop=None)
    fails(held_out=0.2)
    load(source)
    changed = source / "1" / "1.png" if source.is_dir() else source
    status = changed.stat()
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    fails()
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    load(source)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(folder / "pixels.npy", (folder / "pixels.npy").stat().st_size - 1),
        lambda folder: os.truncate(folder / "pixels.npy", (folder / "pixels.npy").stat().st_size + 1),
        lambda folder: os.truncate(folder / "pixels.npy", 40),
        lambda folder: os.truncate(folder / "labels.npy", 0),
        lambda folder: np.save(folder / "labels.npy", np.zeros(3, dtype=np.int64)),
        lambda folder: np.save(folder / "labels.npy", np.array([os.getpid] * 4, dtype=object), allow_pickle=True),
        lambda folder: np.save(folder / "pixels.npy", np.zeros((4, 3, 4, 4), dtype=np.uint8)[:, :2]),
        lambda folder: (folder / "index.json").write_text("[]"),
        lambda folder: (folder / "index.json").unlink(),
    ],
)
def test_what_was_decoded_and_damaged_is_made_again(tmp_path, load, damage):
    source = tree(tmp_path / "in", {f"{i}.png": flat(i, 2, 3) for i in range(4)})
    whole = together(load(source))
    folder = next(path for path in (tmp_path / "decoded").iterdir() if path.is_dir())
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    damage(folder)
    (folder.parent / f".{folder.name}.partial").mkdir()  # left over by a process that was stopped
    assert together(load(source)) == whole
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
    assert {path.suffix for path in folder.parent.iterdir()} == {"", ".lock"}


def test_several_who_load_decode_once(tmp_path, load, monkeypatch):
    """Four threads at a time; each image is decoded by the first only."""
    source = tree(tmp_path / "in", {f"{i}.png": flat(i, 2, 3) for i in range(5)})
    count, pixels = [], decoding._decode
    monkeypatch.setattr(decoding, "_decode", lambda *arguments: count.append(1) or pixels(*arguments))
    found = []
    threads = [threading.Thread(target=lambda: found.append(together(load(source)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[(i, 0) for i in range(5)]] * 4 and len(count) == 5


def test_images_that_disappear_meanwhile(tmp_path, load, monkeypatch):
    source = tree(tmp_path / "in", {f"{i}.png": flat(i, 2, 3) for i in range(4)})
    arrange = folders.arrange

    def listed(*arguments):
        found = arrange(*arguments)
        (source / "2.png").unlink()
        return found

    monkeypatch.setattr(folders, "arrange", listed)
    with pytest.raises(ValueError, match="1 of 4 images disappeared meanwhile"):
        load(source)


def test_where_decoded_images_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "downloads", lambda: tmp_path / "cache")
    data.load("images", tree(tmp_path / "in", {f"{i}.png": flat(i, 2, 3) for i in range(4)}))
    assert {path.parent for path in tmp_path.rglob("pixels.npy")} <= set((tmp_path / "cache" / "images").iterdir())
    assert len(list((tmp_path / "cache" / "images").glob("*/pixels.npy"))) == 1
