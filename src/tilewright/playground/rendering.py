"""HTML of generated images with their scores; each image links to its PNG file.

Images are embedded as data URLs, so nothing is written to disk.
"""

import re
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from typing import Any

from PIL import Image

from tilewright.playground.session import Snapshot
from tilewright.viz.images import captioned_grid, encode_png

MIN_WIDTH = 128  # pixels; the browser upscales narrower images without smoothing
GRID_COLUMNS = 8  # images per line in the saved grid

STYLE = """
.tw-status {display: flex; gap: 1rem; align-items: center; justify-content: space-between;
  min-height: 2rem; color: var(--body-text-color)}
.tw-status progress {flex: 1; max-width: 20rem; height: .5rem; appearance: none; border: 0;
  background: var(--border-color-primary)}
.tw-status progress::-webkit-progress-bar {background: var(--border-color-primary)}
.tw-status progress::-webkit-progress-value {background: var(--color-accent)}
.tw-status progress::-moz-progress-bar {background: var(--color-accent)}
.tw-status a {color: var(--link-text-color); text-decoration: underline}
.tw-status.stopped > * {display: none}
.tw-status.stopped::after {content: "Stopped."}
.tw-error {padding: .5rem .75rem; border-left: .25rem solid var(--error-border-color);
  background: var(--error-background-fill); color: var(--error-text-color)}
.tw-warning {padding: .25rem .75rem; border-left: .25rem solid var(--color-accent);
  color: var(--body-text-color)}
.tw-gallery {display: grid; gap: 1rem .75rem; margin-top: .5rem;
  grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr))}
.tw-gallery figure {margin: 0}
.tw-gallery img, .tw-gallery .blank {display: block; width: 100%; aspect-ratio: 1;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-secondary)}
.tw-gallery img.small {image-rendering: pixelated}
.tw-gallery figcaption {display: flex; justify-content: space-between; min-height: 1.7em;
  padding-top: .3rem; font-size: var(--text-sm); color: var(--body-text-color-subdued)}
"""


def render_placeholders(n: int) -> str:
    """Returns `n` empty frames, for the page before the first request."""
    frames = '<figure><div class="blank"></div><figcaption></figcaption></figure>' * n
    hint = "Type a caption and press Generate."
    return f'<div class="tw-status"><span>{hint}</span></div><div class="tw-gallery">{frames}</div>'


def render_error(message: str) -> str:
    """Returns an error message as an alert."""
    return f'<div class="tw-error" role="alert">{escape(message)}</div>'


def render_snapshot(snapshot: Snapshot) -> str:
    """Returns the images and the status line. Finished images have links that save them."""
    if snapshot.records:
        action = _link(_grid_png(snapshot), f"{_file_stem(snapshot)}.png", "Save all as one PNG")
        figures = [
            _finished_figure(snapshot, image, record)
            for image, record in zip(snapshot.images, snapshot.records, strict=True)
        ]
    else:
        action = f'<progress value="{snapshot.progress:.3f}"></progress>'
        figures = [f"<figure>{_img(image, snapshot.caption)}</figure>" for image in snapshot.images]
    status = f'<div class="tw-status"><span>{escape(snapshot.note)}</span>{action}</div>'
    warning = (
        f'<div class="tw-warning">{escape(snapshot.warning)}</div>' if snapshot.warning else ""
    )
    return f'{status}{warning}<div class="tw-gallery">{"".join(figures)}</div>'


def _finished_figure(snapshot: Snapshot, image: Image.Image, record: Mapping[str, Any]) -> str:
    index = record["candidate"]
    png = encode_png(image, {**snapshot.settings, **record})
    name = f"{_file_stem(snapshot)}-{index:03}.png"
    link = _link(png, name, _img(image, snapshot.caption))
    score = f"<span>score {record['score']:.3f}</span>" if "score" in record else ""
    return f"<figure>{link}<figcaption><span>no. {index}</span>{score}</figcaption></figure>"


def _grid_png(snapshot: Snapshot) -> bytes:
    grid = captioned_grid([snapshot.caption], [snapshot.images], GRID_COLUMNS)
    return encode_png(grid, {**snapshot.settings, "pictures": snapshot.records})


def _img(image: Image.Image, caption: str) -> str:
    small = ' class="small"' if image.width < MIN_WIDTH else ""
    return f'<img{small} src="{_data_url(encode_png(image))}" alt="{escape(caption)}">'


def _link(png: bytes, name: str, content: str) -> str:
    return f'<a href="{_data_url(png)}" download="{escape(name)}">{content}</a>'


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"


def _file_stem(snapshot: Snapshot) -> str:
    """Returns a file name made of the caption's words and the seed."""
    words = re.sub(r"\W+", "-", snapshot.caption)[:60].strip("-")
    return f"{words or 'image'}-seed{snapshot.settings['seed']}"
