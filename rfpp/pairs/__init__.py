"""Pairs ``(x, z)`` of the 1-rectified flow: ``z`` is noise, ``x`` what the teacher's ODE makes of it (Algorithm 1).

Images are stored as 8-bit pixels in numbered shards; noise is not stored at all, since :func:`noise` computes it from
``(seed, index)``. Image ``i`` of a folder therefore depends on nothing but the teacher, the seed and ``i``: shards can
be made in any order and by any number of processes, and a run that was interrupted goes on with those that are missing.

A folder may hold millions of pairs. But for small folders nothing is kept in memory: rows are read where they lie, and
each is compared with its checksum as it is read, so that a damaged one is never used.

Pairs that the paper's released code made come in with :func:`import_released`. Their noise is stored as the state of
the generator it was drawn from, and :func:`noise_of_states` draws it again. The noise of real images, which
:func:`invert` finds, is stored as it is.
"""

from rfpp.pairs.generators import GENERATOR, STATE_BYTES, noise, noise_of_states
from rfpp.pairs.making import generate, invert
from rfpp.pairs.mixture import Mixture
from rfpp.pairs.released import import_released
from rfpp.pairs.store import FORMAT, IN_MEMORY, INDEX, SHARD_SIZE, Damaged, PairDataset, share_done

__all__ = [
    "FORMAT", "GENERATOR", "INDEX", "IN_MEMORY", "SHARD_SIZE", "STATE_BYTES", "Damaged", "Mixture", "PairDataset",
    "generate", "import_released", "invert", "noise", "noise_of_states", "share_done",
]  # fmt: skip
