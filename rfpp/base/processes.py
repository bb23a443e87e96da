"""Where work runs: this process among several, and the device of its models.

One process is the ordinary case, and everything here is then trivial. Under ``torchrun`` (or ``accelerate launch``)
there are many, on one machine or several; ``accelerate`` detects and connects them.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from types import FrameType
from typing import Any, TypeVar

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

_INTERFACE = "GLOO_SOCKET_IFNAME"
_PATIENCE = timedelta(hours=6)
"""How long processes wait while one works alone, such as the first process when it grades 50,000 images."""


def through_gloo() -> bool:
    """Whether work runs on CPUs, where processes communicate through gloo; ``accelerate`` must be told.

    By itself, ``accelerate`` would also choose Apple's GPUs. These have no double precision, which the times of the
    samplers need.
    """
    return not torch.cuda.is_available()


def listen_to_other_machines() -> None:
    """Tell gloo which network interface reaches the other machines, where it would listen only to this one.

    Gloo listens at the address of the host's name, which is a loopback address on many machines. Call this before the
    processes are connected. Raises ``RuntimeError`` when no other network is found.
    """
    size, here = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if size <= here or os.environ.get(_INTERFACE):
        return
    try:
        own = socket.gethostbyname(socket.gethostname())
    except OSError:
        own = "127.0.0.1"
    if not ipaddress.ip_address(own).is_loopback:
        return
    main = os.environ.get("MASTER_ADDR", "")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect((main, 9))  # a datagram socket: this sends nothing, it only chooses an address
        leaving = way.getsockname()[0]
    networks = psutil.net_if_addrs().items()
    found = [name for name, addresses in networks if leaving in {each.address for each in addresses}]
    if ipaddress.ip_address(leaving).is_loopback or not found:
        raise RuntimeError(
            f"the name of this host, {socket.gethostname()!r}, has the address {own}, which no other machine reaches; "
            f"set {_INTERFACE} to the network that leads to them, for example {_INTERFACE}=eth0"
        )
    os.environ[_INTERFACE] = found[0]


def a_gpu_each() -> None:
    """Raise ``ValueError`` if ``torchrun`` started more processes on this machine than it has GPUs.

    Without any, work is on CPUs, which processes share. Call this before the processes are connected.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    gpus = torch.cuda.device_count() if here > 1 else here
    if here > gpus > 0:
        raise ValueError(
            f"{here} processes were started on a machine with {gpus} GPU{'s' * (gpus > 1)}, and each needs its own; "
            f"use torchrun --nproc-per-node={gpus}, or CUDA_VISIBLE_DEVICES= to compute on CPUs"
        )


_TRIM, _MAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's mallopt
_KEPT = 1 << 29


@cache
def keep_memory() -> bool:
    """Let this process keep up to half a GiB of freed memory; return whether that was possible (it needs glibc).

    Otherwise the memory of each large tensor returns to the system and is mapped again page by page. This takes up to a
    tenth of a training step of the digits' network, and up to a fifth of sampling. Nothing is changed if
    ``MALLOC_TRIM_THRESHOLD_`` is set.
    """
    if "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return False
    with suppress(AttributeError, OSError, TypeError):  # other systems have no such function
        option = ctypes.CDLL(None).mallopt
        return bool(option(_TRIM, _KEPT) and option(_MAP, _KEPT // 2))
    return False


def cast_each_time() -> None:
    """Have autocast cast a weight at each use, in this thread.

    Otherwise it keeps the first result. A network that is first evaluated without gradients, as for a target, would in
    some versions of PyTorch be evaluated without those of its weights afterwards.
    """
    torch.set_autocast_cache_enabled(False)


def prepare() -> None:
    """What a process needs before it computes anything; raises the errors of the functions that this calls."""
    listen_to_other_machines()
    a_gpu_each()
    keep_memory()


def free_memory() -> None:
    """Return to the GPU what finished work leaves behind: other processes, or the next step, may need it."""
    if torch.cuda.is_initialized():
        torch._dynamo.reset()  # graphs of networks that are gone make those of the next ones more general, and slower
        gc.collect()  # what refers to itself keeps its memory until then
        torch.cuda.empty_cache()


@cache
def state() -> PartialState:
    """This process's place among all processes; the first call connects them."""
    found = PartialState(cpu=through_gloo(), timeout=_PATIENCE)
    if found.num_processes > 1:
        atexit.register(found.destroy_process_group)  # or a thread of the connection may abort a finished process
    return found


@contextmanager
def alone_after_errors() -> Iterator[None]:
    """After an error within, let this process end without the others.

    On GPUs, processes close their connections together. The others may wait for this one in the middle of a step, and
    nobody would learn of the error. Once it has ended, ``torchrun`` ends them.
    """
    try:
        yield
    except Exception:
        if state.cache_info().currsize and not through_gloo():
            atexit.unregister(state().destroy_process_group)
        raise


def count() -> int:
    """The number of processes."""
    return int(state().num_processes)


def index() -> int:
    """The number of this process, from 0."""
    return int(state().process_index)


def is_main() -> bool:
    """Whether this is the first process, which writes the files that are written once and draws the bars."""
    return index() == 0


def wait() -> None:
    """Wait until every process has reached this call."""
    state().wait_for_everyone()


def device() -> torch.device:
    """The device of this process's models and batches."""
    return torch.device(state().device)


def any_of(flag: bool) -> bool:
    """Whether ``flag`` is set in any process; all processes must call this together."""
    if count() == 1:
        return flag
    flags = torch.tensor(float(flag), device=device())
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return bool(flags)


@cache
def _cpu_group() -> Any:
    """A second group of all processes, which communicates between CPUs."""
    return torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)


class Poll:
    """Ask at each step whether a flag is set in any process, without making a process wait.

    The answer is that of the previous step and is the same in all processes. It travels between CPUs, so that no GPU
    is synchronised.
    """

    def __init__(self) -> None:
        self._group = _cpu_group() if count() > 1 else None
        self._pending: tuple[Any, Tensor] | None = None

    def __call__(self, flag: bool) -> bool:
        if self._group is None:
            return flag
        answer = False
        if self._pending is not None:
            work, flags = self._pending
            work.wait()
            answer = bool(flags)
        flags = torch.tensor(float(flag))
        maximum = torch.distributed.ReduceOp.MAX
        work = torch.distributed.all_reduce(flags, op=maximum, group=self._group, async_op=True)
        self._pending = (work, flags)
        return answer


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes."""
    if count() == 1:
        return value
    value = value.clone()
    torch.distributed.all_reduce(value)
    return value / count()


def from_main(value: Any) -> Any:
    """Return the first process's ``value`` in all processes."""
    return broadcast_object_list([value])[0] if count() > 1 else value


Result = TypeVar("Result")


def by_main(work: Callable[[], Result]) -> Result:
    """Call ``work()`` in the first process and return its result in all. An error there is raised in all processes, so
    that none waits for a process that has ended."""
    if count() == 1:
        return work()
    outcome: tuple[Any, Exception | None] = None, None
    if is_main():
        try:
            outcome = work(), None
        except Exception as error:
            outcome = None, error
    result, raised = from_main(outcome)
    if raised is not None:
        raise raised
    return result


Model = TypeVar("Model", bound=nn.Module)


def _carry(value: Any, place: torch.device) -> Any:
    return value.to(place) if isinstance(value, Tensor) else value


def place(model: Model) -> Model:
    """Move ``model`` to this process's device; from then on it moves its inputs there and its output back.

    A call with tensors on the CPU returns tensors on the CPU, so a notebook need not know where a model is.
    """
    target = device()
    model = model.to(target)
    if target.type != "cpu":
        origin: list[torch.device] = []

        def fetch(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            given = (*arguments, *named.values())
            origin.append(next((value.device for value in given if isinstance(value, Tensor)), target))
            carried = {name: _carry(value, target) for name, value in named.items()}
            return tuple(_carry(value, target) for value in arguments), carried

        def send(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
            return _carry(output, origin.pop())

        model.register_forward_pre_hook(fetch, with_kwargs=True)
        model.register_forward_hook(send)
    return model


class WorkerLost(RuntimeError):
    """Raised when the workers of a step die again and again while it gets no further."""


class Stopped(KeyboardInterrupt):
    """A signal ended the work, and everything worth keeping is on disk; the same command continues from there."""

    EXIT = 75  # sysexits' EX_TEMPFAIL: the input is not at fault, try again
    """The exit status of the command line."""


def _hears_signals() -> bool:
    """Whether this is the main thread, the only one that can receive signals."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def terminable() -> Iterator[None]:
    """Make SIGTERM end work as Ctrl-C does, with files closed and finished steps kept, unless it is held back.

    Outside the main thread nothing changes.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise Stopped("stopped by SIGTERM; finished steps are kept. Run the same command to go on")

    if not _hears_signals():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Stop:
    """A record of the signal that arrived, true once there is one."""

    def __init__(self) -> None:
        self.asked = ""

    def __bool__(self) -> bool:
        return bool(self.asked)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Hold back SIGINT and SIGTERM so that work can end at a good place; a second signal ends it at once.

    Only the main thread can receive signals; elsewhere nothing is held back.
    """
    stop = Stop()
    if not _hears_signals():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}  # under nohup

    def note(number: int, frame: FrameType | None) -> None:
        stop.asked = signal.Signals(number).name
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
