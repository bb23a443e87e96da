"""Every test has its own folder of results, and no progress bars in the output.

The tests compute on the CPU, also where there is a GPU: many compare bits. ``RFPP_TEST_GPU=1`` has them use it.
"""

import os

import pytest
import torch
from truth import network

from rfpp.denoisers import EDMPrecond
from rfpp.flow import RectifiedFlow

if os.environ.get("RFPP_TEST_GPU", "") in ("", "0"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nothing has looked for one yet
else:  # the tests' tolerances are those of float32, and equal work must give equal bits
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # in workers, too
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """The folder of results of this test."""
    monkeypatch.setenv("RFPP_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("RFPP_PROGRESS", os.devnull)
    monkeypatch.setenv("RFPP_JOBS", "1")
    return tmp_path / "runs"


@pytest.fixture
def shared_runs(tmp_path_factory, monkeypatch):
    """A folder of results that all tests of notebooks share, in all processes: each step is computed once."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "shared"
    monkeypatch.setenv("RFPP_RUNS", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny():
    """A denoiser with a tiny U-Net, random weights and three classes; not to be changed."""
    return EDMPrecond(network()).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_flow(tiny):
    """The flow of that denoiser."""
    return RectifiedFlow(tiny)
