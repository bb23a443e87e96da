"""Writes EDM's checkpoint format: denoisers of this package as pickles of ``torch_utils.persistence`` objects."""

import collections
import pickle
import sys
import types

import numpy as np
from torch import nn

SOURCE = "raise RuntimeError('the source in a checkpoint was executed')"
_MODULE = "torch_utils.persistence"


def _reconstruct_persistent_obj(meta):
    raise RuntimeError("an object of a checkpoint was reconstructed")


_reconstruct_persistent_obj.__module__ = _MODULE


class EasyDict(dict):
    """As in EDM's ``dnnlib.util``: a dictionary that is pickled under its own name."""


EasyDict.__module__ = "dnnlib.util"


class Persistent:
    """An object that reduces to a call of ``_reconstruct_persistent_obj`` with its class name, source and state."""

    def __init__(self, class_name, state):
        self.class_name, self.state = class_name, state

    def __reduce__(self):
        meta = {
            "type": "class", "version": 6, "module_src": SOURCE, "class_name": self.class_name, "state": self.state
        }  # fmt: skip
        return _reconstruct_persistent_obj, (meta,), None


def state(module, arguments=None, **attributes):
    """A module's ``__dict__`` as EDM's modules have it, numpy scalars and all, with its children as such objects."""
    found = {
        key: collections.OrderedDict() if isinstance(value, dict) else value
        for key, value in nn.Module().__dict__.items()
    }
    children = collections.OrderedDict((name, persistent(child)) for name, child in module._modules.items())
    found.update(_parameters=module._parameters, _buffers=module._buffers, _modules=children)
    found.update(skip_scale=np.sqrt(0.5), groups=np.int64(4), _init_args=(), _init_kwargs=arguments or {})
    return {**found, **attributes}


def persistent(module):
    """A module as an object of the format; containers are torch's own, whose children are such objects."""
    if module is None:
        return None
    if isinstance(module, nn.ModuleDict):
        container = nn.ModuleDict()
        container.__dict__["_modules"] = collections.OrderedDict(
            (name, persistent(child)) for name, child in module._modules.items()
        )
        return container
    arguments = {"init_attn": dict(init_weight=np.sqrt(0.2)), **getattr(module, "config", {})}
    if hasattr(module, "config"):
        arguments = EasyDict(module.config)
    return Persistent(type(module).__name__, state(module, arguments))


def denoiser(model, **attributes):
    """The object for an ``EDMPrecond`` or ``VPPrecond``."""
    own = {"img_resolution": model.model.img_resolution, "label_dim": model.label_dim, "use_fp16": False}
    if hasattr(model, "sigma_data"):
        own["sigma_data"] = model.sigma_data
    return Persistent(type(model).__name__, state(model, own, **own, **attributes))


def write(path, content, protocol=pickle.DEFAULT_PROTOCOL):
    """Pickle ``content`` with the modules of EDM's code in place, and take them away again."""
    stand_ins = {name: types.ModuleType(name) for name in ("torch_utils", _MODULE, "dnnlib", "dnnlib.util")}
    stand_ins[_MODULE]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    stand_ins["dnnlib.util"].EasyDict = EasyDict
    sys.modules.update(stand_ins)
    try:
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    finally:
        for name in stand_ins:
            del sys.modules[name]
    return path
