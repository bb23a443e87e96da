"""Which kernel attention takes, forwards and backwards, at each resolution of the paper's networks.

ADM (ImageNet 64) has heads of 64 channels, NCSN++ (CIFAR-10) one of 256. What ran is read off torch's profiler.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import trainings
from provenance import Report, choice, parser
from torch.profiler import ProfilerActivity, profile

from rfpp import engine, networks
from rfpp.base import processes
from rfpp.denoisers import EDMPrecond

CASES = {"bf16": ("bf16", False), "bf16-compiled": ("bf16", True), "fp16": ("fp16", False), "fp32": ("fp32", False)}
"""Precision, and whether the network is compiled."""
OPERATION = re.compile(r"aten::_scaled_dot_product_\w+?(?P<backward>_backward)?$")


def launched(event: Any) -> set[str]:
    """The GPU kernels of an operation and of those that it calls."""
    return {kernel.name[:100] for kernel in event.kernels}.union(*map(launched, event.cpu_children))


def kernels(work: Callable[[], object]) -> list[dict[str, Any]]:
    """What attention did in ``work()``: a row for each resolution and shape, with the operations and GPU kernels."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=activities, record_shapes=True) as seen:
        work()
    found: dict[tuple[int, int, int], dict[str, Any]] = defaultdict(
        lambda: {"calls": 0, "forward": set(), "backward": set(), "kernels": set(), "GPU ms": 0.0}
    )
    for event in seen.events():
        match = OPERATION.match(event.name)
        if match is None:
            continue
        _, heads, places, width = event.input_shapes[0]  # of the queries, or of what comes back to the output
        row = found[math.isqrt(places), heads, width]
        row["backward" if match["backward"] else "forward"].add(event.name.removeprefix("aten::"))
        row["calls"] += not match["backward"]
        row["kernels"] |= launched(event)
        row["GPU ms"] += event.device_time_total / 1000
    return [
        {"resolution": resolution, "heads": heads, "head width": width, **row,
         "fused": bool(row["backward"]) and not any("math" in name for name in row["forward"]),
         **{part: sorted(row[part]) for part in ("forward", "backward", "kernels")}}
        for (resolution, heads, width), row in sorted(found.items(), reverse=True)
    ]  # fmt: skip


def step(network: networks.SongUNet | networks.DhariwalUNet, batch: int, precision: str) -> Callable[[], None]:
    """A pass forwards and backwards, as trainings do it."""
    device, dtype, size = processes.device(), engine.PRECISIONS[precision], network.img_resolution
    denoiser = trainings.livened(EDMPrecond(network)).train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, sigma = torch.randn(batch, 3, size, size, device=device), torch.ones(batch, device=device)

    def work() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = denoiser(x, sigma).float().square().mean()
        loss.backward()

    return work


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Look at each network in each precision, and in bf16 compiled as well."""
    options = parser(__doc__)
    choice(options, "cases", list(CASES))
    arguments = options.parse_args(argv)
    report = Report(__file__, arguments)
    changes: dict[str, Any] = {}
    cases = [CASES[name] for name in arguments.cases]
    if arguments.small:
        changes = {"img_resolution": 8, "model_channels": 64, "channel_mult": [1], "num_blocks": 1}
        cases = cases[1:2] + cases[3:]
    for name in ("imagenet64", "cifar10"):
        for precision, compiled in cases:
            network = networks.paper(name, generator=torch.Generator().manual_seed(0), **changes)
            if compiled:
                network.compile(backend="aot_eager" if arguments.small else "inductor")
            work = step(network, 2 if arguments.small else 16, precision)
            work()  # what is chosen or compiled once is not looked at
            for row in kernels(work):
                report.add(network=name, precision=precision, compiled=compiled, **row)
    return report.finish()


if __name__ == "__main__":
    main()
