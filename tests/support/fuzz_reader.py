"""Reads the files of one folder as `prepare` does in a worker process, with faults to plant."""

import dataclasses

from ssgan.data.sources import find_volumes, load
from ssgan.data.volume import Failure, VolumeError


def read(task, fault=None):
    """The Volume of a task (root, files) for `find_volumes`: one file or series; or the Failure with its reason."""
    sources = find_volumes(task)
    good = [s for s in sources if not s.reason]
    if len(good) != 1:
        return Failure(next((s.reason for s in sources if s.reason), "") or "nothing was found")
    try:
        volume = load(good[0])
    except VolumeError as error:
        return Failure(str(error))
    affine = volume.affine.copy()
    match fault:
        case "mirror":
            return dataclasses.replace(volume, data=volume.data[::-1].copy())
        case "scale":
            return dataclasses.replace(volume, data=volume.data * 1.01 + 1)
        case "move":
            affine[0, 3] += 1
        case "spacing":
            affine[:3, 2] *= 1.1
    return dataclasses.replace(volume, affine=affine)
