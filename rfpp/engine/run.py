"""The state of a training: everything that changes during it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rfpp.base import processes
from rfpp.engine.history import History, LossesOverTime
from rfpp.engine.machinery import Machinery, Optimisation, ema_update


def _steps(run: weakref.ref[Run]) -> int:
    found = run()
    assert found is not None  # it is taking the step
    return found.step


class Run:
    """Everything that changes during a training: the model, its average, the optimiser, and the losses so far."""

    def __init__(self, model: nn.Module, optimisation: Optimisation, machinery: Machinery) -> None:
        processes.state()
        # Precision belongs to a training, not to the process.
        accelerator = Accelerator(cpu=processes.through_gloo(), mixed_precision="no")
        self.device = accelerator.device
        model = copy.deepcopy(model).requires_grad_(True).train().to(self.device)
        if machinery.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model
        # An average that refers to its own training would keep the memory of both, also on a GPU.
        own = weakref.ref(self)
        self.average = AveragedModel(
            model, multi_avg_fn=ema_update(optimisation.ema, lambda: _steps(own), optimisation.growing)
        )
        self.optimiser = torch.optim.Adam(
            model.parameters(), lr=optimisation.lr, betas=(0.9, 0.999), eps=1e-8, fused=True
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=machinery.precision == "fp16")
        self.step = 0
        self.history = History()
        self.recent: list[Tensor] = []
        self.skipped = 0
        self.over_time = LossesOverTime(self.device)
        if machinery.compile:
            model.compile()
        self.wrapped: nn.Module = accelerator.prepare_model(model)
        self.accelerator = accelerator

    def _parts(self) -> dict[str, nn.Module]:
        return {"model": self.model, "average": self.average}

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the state, on the CPU, in the first process; all processes call this together."""
        found = {
            "recent": processes.mean(torch.stack(self.recent)) if self.recent else torch.empty(0),
            "over_time": processes.mean(self.over_time.sums) * processes.count(),
        }
        if not processes.is_main():
            return {}
        for part, module in self._parts().items():
            found.update({f"{part}/{name}": tensor for name, tensor in module.state_dict().items()})
        for number, state in self.optimiser.state_dict()["state"].items():
            found.update({f"optimiser/{number}/{name}": tensor for name, tensor in state.items()})
        return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}

    def restore(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        """Continue from a state."""
        for part, module in self._parts().items():
            prefix = f"{part}/"
            module.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser/"):
                _, number, key = name.split("/")
                state.setdefault(int(number), {})[key] = tensor
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        for parameter, moments in self.optimiser.state.items():
            for name, value in moments.items():
                if name != "step":  # Adam runs in memory order, so moments need their parameters' layout
                    moments[name] = torch.empty_like(parameter).copy_(value)
        self.scaler.load_state_dict(note["scaler"])
        self.step, self.history = note["step"], History(**note["history"])
        self.skipped = note.get("skipped", 0)
        self.recent = list(tensors["recent"].to(self.device))
        self.over_time.sums = tensors["over_time"].to(self.device) / processes.count()
