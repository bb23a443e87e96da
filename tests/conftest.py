"""Every test has its own folder of results, and no progress bars in the output."""

import os

import pytest
from truth import network

from rfpp.denoisers import EDMPrecond
from rfpp.flow import RectifiedFlow


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
