"""Pairs ``(x, z)`` of the 1-rectified flow: ``z`` is noise, ``x`` the teacher's ODE solution from it (Algorithm 1).

Images are stored as 8-bit pixels in numbered shards. Noise is not stored: :func:`noise` computes it from
``(seed, index)``. Image ``i`` of a folder therefore depends only on the teacher, the seed and ``i``: shards can be made
in any order and by any number of processes, and an interrupted run continues with the missing shards.

A folder may hold millions of pairs. Only small folders are kept in memory; otherwise rows are read from disk when they
are needed. Each row is compared with its checksum when it is read, so a damaged row is never used.

:func:`import_released` imports pairs that the paper's released code made. Their noise is stored as the state of the
generator that it was drawn from, and :func:`noise_of_states` draws it again. The noise of real images, which
:func:`invert` finds, is stored itself.
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
