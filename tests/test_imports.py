"""What importing the library does, seen in one fresh process, whose start takes seconds."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import rfpp

LAYOUT = "TORCHINDUCTOR_FORCE_LAYOUT_OPT"
IMPORTS = """
import json, random, sys, threading
import numpy, torch

def state():
    return torch.get_rng_state().tolist(), numpy.random.get_state()[2], random.getstate()

before = state()
import rfpp.experiment
from torch._inductor import config

found = {}
look = threading.Thread(target=lambda: found.update(layout=config.force_layout_optimization))
look.start(), look.join()
import rfpp.book, rfpp.book.plots, rfpp.claims, rfpp.commands, rfpp.features, rfpp.metrics, rfpp.studies.ladder

found["draws"] = state() != before
found["loads"] = [name for name in ("torchvision", "lpips", "torch_fidelity") if name in sys.modules]
print(json.dumps(found))
"""


def test_importing_draws_nothing_loads_no_torchvision_and_lets_torchs_compiler_keep_the_layout():
    """Torchvision takes as long as all the rest, at the start of every command and notebook. The layout is kept in all
    threads, as what a cell of a notebook sets is seen by no other cell."""
    environment = {name: value for name, value in os.environ.items() if name != LAYOUT}
    script, root = [sys.executable, "-c", IMPORTS], Path(__file__).parents[1]
    ended = subprocess.run(script, capture_output=True, text=True, check=False, cwd=root, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {"layout": True, "draws": False, "loads": []}


def test_a_user_who_objects_keeps_torchs_own_layout(monkeypatch):
    monkeypatch.setenv(LAYOUT, "0")
    runpy.run_path(rfpp.__file__)
    assert os.environ[LAYOUT] == "0"
