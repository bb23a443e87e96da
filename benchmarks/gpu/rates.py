"""Training steps of the paper's CIFAR-10 and ImageNet networks, as a share of the rate of a matrix product.

A step is the library's own: loader, autocast, Adam, moving average. Its operations are those of the network, forwards
and backwards. The rate of a large product of the same type is measured right before. Then what LPIPS adds, by preset.
"""

from __future__ import annotations

import copy
import gc
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import trainings
from provenance import Report, choice, parser
from torch import nn
from torch._inductor import config as inductor
from torch.utils.flop_counter import FlopCounterMode

from rfpp import engine, networks, premetrics, timesteps, training
from rfpp.base import processes
from rfpp.denoisers import EDMPrecond
from rfpp.pipeline import costs

GOAL = {"bf16": 0.45}
SIZES = {"cifar10": 256, "imagenet64": 96}
"""Rows of a step; half as many where they do not fit into memory."""


def matrix_rate(dtype: torch.dtype, size: int, tf32: bool = False) -> float:
    """Operations per second of the product of two square matrices."""
    a, b = (torch.randn(size, size, device=processes.device()).to(dtype) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        return 2 * size**3 / trainings.rate(lambda: a @ b, repeats=100 if trainings.on_gpu() else 3)
    finally:
        torch.set_float32_matmul_precision(before)


def operations(denoiser: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiplications and additions for one image, forwards and backwards; nothing is computed but the count."""
    away = copy.deepcopy(denoiser).to("meta")
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        away(torch.empty(1, *shape), torch.ones(1)).square().sum().backward()
    return int(counter.get_total_flops())


def seconds(teacher: EDMPrecond, folder: Path, batch: int, machinery: engine.Machinery, steps: int) -> float:
    """Of a training step with pseudo-Huber, the mean of those after the first third."""
    dataset = trainings.made_pairs(teacher, folder, n=max(256, batch))
    flow = trainings.livened(training.initial_flow(teacher, "teacher", dropout=0.1, seed=0))
    objective = training.Reflow(dataset, timesteps.UShaped(), premetrics.pseudo_huber, batch, seed=0)
    clock, _, _ = trainings.fit(flow, objective, steps, machinery)
    return clock.step(warmup=steps // 3)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure each network in each precision."""
    options = parser(__doc__)
    options.add_argument("--eager", action="store_true", help="do not compile the networks")
    options.add_argument("--torch-layout", action="store_true", help="let torch's compiler choose the memory layout")
    options.add_argument("--steps", type=int, default=30, help="steps of each training; the first third is warm-up")
    choice(options, "networks", list(SIZES))
    choice(options, "precisions", ["bf16", "fp16", "fp32"])
    choice(options, "presets", ["cifar10", "paper-cifar10"])
    arguments = options.parse_args(argv)
    report, small = Report(__file__, arguments), arguments.small
    steps, size = (3, 128) if small else (arguments.steps, 8192)
    shrunk = {"img_resolution": 8, "model_channels": 64, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [8]}
    if arguments.torch_layout:
        inductor.force_layout_optimization = False
    changes = {"machinery.compile": False} if arguments.eager else {}
    plan = trainings.plan(small, changes=changes | ({"machinery.workers": 0} if small else {}))
    for name in arguments.networks:
        made = networks.paper(name, generator=torch.Generator().manual_seed(0), **(shrunk if small else {}))
        teacher, shape = EDMPrecond(made), (3, made.img_resolution, made.img_resolution)
        count = operations(teacher, shape)
        for precision in arguments.precisions:
            machinery = plan.preset.machinery.model_copy(update={"precision": precision, "log_every": steps})
            peak, batch, took = (
                matrix_rate(engine.PRECISIONS[precision] or torch.float32, size),
                2 if small else SIZES[name],
                None,
            )
            torch._dynamo.reset()  # it takes no more than eight networks of a kind in one process
            while took is None:
                with suppress(torch.OutOfMemoryError), tempfile.TemporaryDirectory() as folder:
                    took = seconds(teacher, Path(folder), batch, machinery, steps)
                if took is None:
                    batch //= 2
                    gc.collect()  # the error held on to the step's tensors
                    torch.cuda.empty_cache()
            share = count * batch / took / peak
            row: dict[str, Any] = {
                "network": name, "precision": precision, "compiled": machinery.compile,
                "layout kept": machinery.compile and inductor.force_layout_optimization, "batch": batch,
                "parameters": sum(p.numel() for p in made.parameters()), "operations an image": count,
                "seconds a step": took, "operations a second": count * batch / took, "matrix rate": peak,
                "share": share,
            }  # fmt: skip
            if precision == "fp32":  # convolutions may use TensorFloat-32, which products of matrices do not by default
                row["matrix rate in TF32"] = matrix_rate(torch.float32, size, tf32=True)
                row["share of TF32"] = row["operations a second"] / row["matrix rate in TF32"]
            if precision in GOAL:
                row |= {"goal": GOAL[precision], "reached": share >= GOAL[precision]}
            report.add(**row)
    for preset in arguments.presets[:1] if small else arguments.presets:
        torch._dynamo.reset()
        pace = costs.measure(trainings.plan(small, preset), repeats=1 if small else 20)
        paces = {"images a second": pace.step, "without LPIPS": pace.plain, "LPIPS adds": pace.lpips}
        report.add(preset=preset, **paces)
    return report.finish()


if __name__ == "__main__":
    main()
