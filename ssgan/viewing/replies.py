"""What the viewer's server answers: bytes with their type, or an error with its HTTP status."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from typing import Any

import nibabel

from ssgan.utils.errors import UserError

NIFTI = "application/octet-stream"


class Forbidden(UserError):
    """A request for what is not to be shown (HTTP 403)."""


class NotFound(UserError):
    """A request for what is not there (HTTP 404)."""


@dataclass(frozen=True)
class Reply:
    """The body of an answer. name: under which the browser saves it, or ""."""

    body: bytes
    kind: str
    name: str = ""


def json_reply(value: Any) -> Reply:
    return Reply(json.dumps(value).encode(), "application/json")


def nifti_reply(image: nibabel.Nifti1Image, name: str) -> Reply:
    """The bytes of a NIfTI file; compressed where the name ends in .gz."""
    data = image.to_bytes()
    return Reply(gzip.compress(data, 6, mtime=0) if name.endswith(".gz") else data, NIFTI, name)
