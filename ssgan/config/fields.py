"""Checks and conversions that every configuration class uses, between JSON and dataclass fields."""

from __future__ import annotations

import dataclasses
from typing import Any

from ssgan.utils.errors import ConfigError

Triple = tuple[int, int, int]  # extents or factors along D, H, W


def to_triple(value: Any, name: str, axes: str = "(D, H, W)") -> Triple:
    """Three positive integers; raises ConfigError naming the field or option, and its axes."""
    values = tuple(int(v) for v in value)
    if len(values) != 3 or min(values) < 1:
        raise ConfigError(f"{name}: expected three positive integers {axes}; got {value!r}")
    return values  # type: ignore[return-value]


def to_tuples(value: Any) -> Any:
    """Turns the lists that JSON has, nested too, into tuples."""
    return tuple(to_tuples(v) for v in value) if isinstance(value, list) else value


def checked_fields(cls: type, data: dict[str, Any], name: str) -> dict[str, Any]:
    """A copy of `data`, the fields of a dataclass; raises ConfigError naming unknown and missing ones."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(fields))
    required = {
        n for n, f in fields.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - set(data))
    if unknown or missing:
        raise ConfigError(
            f"{name}: unknown fields {unknown}, missing fields {missing}; was it written by another version?"
        )
    return dict(data)
