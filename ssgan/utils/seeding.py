"""Seeds of the random streams of a run."""

from __future__ import annotations

# Seeds depend on the index of a stage in this list.
STAGES = ("2d", "3d")
# Seeds depend on the index of a purpose in this list: append new ones at its end.
PURPOSES = ("init", "order", "g_main", "g_path", "pl_noise", "d_main", "aug_g", "aug_fake", "aug_real", "aug_r1")
PURPOSES += ("aug_g_real", "aug_r2")


def splitmix64(state: int) -> int:
    """One output of SplitMix64 (Steele et al. 2014) at `state`, 64 bits."""
    mixed = (state + 0x9E3779B97F4A7C15) % 2**64
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) % 2**64
    return mixed ^ mixed >> 31


def stream_seed(seed: int, stage: str, step: int, purpose: str) -> int:
    """64-bit seed of one stream of random numbers: SplitMix64 chained over the four values."""
    state = 0
    for word in (seed, STAGES.index(stage), step, PURPOSES.index(purpose)):
        state = splitmix64(state ^ word)
    return state
