"""Numbers and durations as the report, the model card and the picture show them."""

from __future__ import annotations

from typing import Any


def format_duration(seconds: float) -> str:
    """3725 -> "1 h 2 min", 65 -> "1 min 5 s"."""
    whole = round(seconds)
    return f"{whole // 3600} h {whole % 3600 // 60} min" if whole >= 3600 else f"{whole // 60} min {whole % 60} s"


def format_number(value: Any) -> str:
    """Gives four significant digits, "none" for None."""
    return "none" if value is None else f"{value:.4g}"
