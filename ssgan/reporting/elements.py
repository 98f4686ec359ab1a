"""Small pieces of HTML that the sections of the report share."""

from __future__ import annotations

import base64
import html
import io

import numpy as np
from PIL import Image

FRAME_WIDTH = 960  # pixels
COLOUR = 40  # difference between two channels of a pixel that is more than the tint of paper and ink


def esc(value: object) -> str:
    """Escapes text for HTML."""
    return html.escape(str(value))


def picture(image: Image.Image, alt: str, caption: str = "", attributes: str = "") -> str:
    """Makes a figure with the picture as a JPEG of at most FRAME_WIDTH, grey where it shows no masks in colour."""
    if image.width > FRAME_WIDTH:
        image = image.resize((FRAME_WIDTH, round(image.height * FRAME_WIDTH / image.width)), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    pixels = np.asarray(image.convert("RGB")).astype(np.int16)
    mode = "RGB" if (pixels.max(-1) - pixels.min(-1)).max() > COLOUR else "L"
    image.convert(mode).save(stream, format="JPEG", quality=85, optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    note = f"<figcaption>{esc(caption)}</figcaption>" if caption else ""
    size = f'width="{image.width}" height="{image.height}"'
    return f'<figure{attributes}><img {size} alt="{esc(alt)}" src="data:image/jpeg;base64,{data}">{note}</figure>'


def missing(text: str) -> str:
    """Makes a paragraph that says what is not there and why."""
    return f'<p class="missing">{text}</p>'


def range_slider(name: str, label: str, count: int, value: int) -> str:
    """Makes a labelled slider over 0 .. count - 1, shown only with JavaScript; arrow keys move it."""
    return (
        f'<div class="slider js-only"><label for="slider-{name}">{esc(label)}</label>'
        f'<input type="range" id="slider-{name}" min="0" max="{count - 1}" step="1" value="{value}">'
        f'<output id="output-{name}" for="slider-{name}"></output></div>'
    )
