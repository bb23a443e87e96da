"""Files that are whole or absent, whatever stops the writing."""

import errno
import os

import pytest
import torch
from safetensors.torch import load_file

from rfpp.base import files

KINDS = {
    "text": lambda path, n: files.write_text(path, "x" * n),
    "tensors": lambda path, n: files.write_tensors(path, {"a": torch.full((n,), 7, dtype=torch.uint8)}),
}
EACH = pytest.mark.parametrize("write", KINDS.values(), ids=KINDS)


def test_what_is_written_is_read(tmp_path):
    """By Python, and by safetensors' own reader; a second writing replaces the first."""
    for text in ("first", "zwölf"):
        files.write_text(tmp_path / "text", text)
        assert (tmp_path / "text").read_text() == text
    for n in (3, 5):
        files.write_tensors(tmp_path / "tensors", {"a": torch.arange(n)}, {"note": "n"})
        assert torch.equal(load_file(tmp_path / "tensors")["a"], torch.arange(n))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tensors", "text"]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_a_file_is_for_whom_the_umask_allows(tmp_path, mask):
    before = os.umask(mask)
    try:
        files.write_tensors(tmp_path / "tensors", {"a": torch.ones(1)})
        files.follow_umask(tmp_path / "tensors")
        (tmp_path / "text").touch()
    finally:
        assert os.umask(before) == mask
    assert (tmp_path / "tensors").stat().st_mode == (tmp_path / "text").stat().st_mode


@EACH
def test_an_interruption_before_the_renaming_leaves_the_earlier_file(tmp_path, monkeypatch, write):
    def stop(*arguments):
        raise KeyboardInterrupt

    write(tmp_path / "file", 10)
    before = (tmp_path / "file").read_bytes()
    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "file", 20)
    assert (tmp_path / "file").read_bytes() == before


@EACH
def test_a_full_disk_is_an_os_error_with_its_number_and_leaves_the_earlier_file(tmp_path, write):
    """The file size limit stands for the disk."""
    resource = pytest.importorskip("resource")
    write(tmp_path / "file", 10)
    before = (tmp_path / "file").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError) as caught:
            write(tmp_path / "file", 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG and (tmp_path / "file").read_bytes() == before


@EACH
def test_a_folder_that_does_not_exist_is_an_os_error(tmp_path, write):
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "nowhere" / "file", 10)
