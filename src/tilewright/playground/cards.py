"""A view as HTML: pictures with their scores under them, each a link to itself as a file.

Pictures are in the page itself as data, so nothing is written on the way, and the page that one
sees is whole at any time.
"""

import re
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from typing import Any

from PIL import Image

from tilewright.playground.session import View
from tilewright.viz.images import captioned_grid, to_png

PIXELS = 128  # a picture with a smaller side is enlarged pixel by pixel
COLUMNS = 8  # of the grid as a file

STYLE = """
.view-bar {display: flex; gap: 1rem; align-items: center; justify-content: space-between;
  min-height: 2rem; color: var(--body-text-color)}
.view-bar progress {flex: 1; max-width: 20rem; height: .5rem; appearance: none; border: 0;
  background: var(--border-color-primary)}
.view-bar progress::-webkit-progress-bar {background: var(--border-color-primary)}
.view-bar progress::-webkit-progress-value {background: var(--color-accent)}
.view-bar progress::-moz-progress-bar {background: var(--color-accent)}
.view-bar a {color: var(--link-text-color); text-decoration: underline}
.view-bar.stopped > * {display: none}
.view-bar.stopped::after {content: "Stopped."}
.mistake {padding: .5rem .75rem; border-left: .25rem solid var(--error-border-color);
  background: var(--error-background-fill); color: var(--error-text-color)}
.view-grid {display: grid; gap: 1rem .75rem; margin-top: .5rem;
  grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr))}
.view-grid figure {margin: 0}
.view-grid img, .view-grid .blank {display: block; width: 100%; aspect-ratio: 1;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-secondary)}
.view-grid img.small {image-rendering: pixelated}
.view-grid figcaption {display: flex; justify-content: space-between; min-height: 1.7em;
  padding-top: .3rem; font-size: var(--text-sm); color: var(--body-text-color-subdued)}
"""


def blank(n: int) -> str:
    """The page's places for pictures, before there are any."""
    places = '<figure><div class="blank"></div><figcaption></figcaption></figure>' * n
    note = "Type a caption and press Draw."
    return f'<div class="view-bar"><span>{note}</span></div><div class="view-grid">{places}</div>'


def mistake(message: str) -> str:
    """What is wrong with what the fields hold."""
    return f'<div class="mistake" role="alert">{escape(message)}</div>'


def to_html(view: View) -> str:
    """A view as HTML; where it is finished, with links that save its pictures."""
    if view.records:
        beside = _link(_grid(view), f"{_name(view)}.png", "Save all as one PNG")
        cards = [
            _card(view, picture, record)
            for picture, record in zip(view.pictures, view.records, strict=True)
        ]
    else:
        beside = f'<progress value="{view.progress:.3f}"></progress>'
        cards = [f"<figure>{_img(picture, view.caption)}</figure>" for picture in view.pictures]
    bar = f'<div class="view-bar"><span>{escape(view.note)}</span>{beside}</div>'
    return f'{bar}<div class="view-grid">{"".join(cards)}</div>'


def _card(view: View, picture: Image.Image, record: Mapping[str, Any]) -> str:
    number = record["candidate"]
    file = to_png(picture, {**view.settings, **record})
    link = _link(file, f"{_name(view)}-{number:03}.png", _img(picture, view.caption))
    score = f"<span>score {record['score']:.3f}</span>" if "score" in record else ""
    return f"<figure>{link}<figcaption><span>no. {number}</span>{score}</figcaption></figure>"


def _grid(view: View) -> bytes:
    grid = captioned_grid([view.caption], [view.pictures], COLUMNS)
    return to_png(grid, {**view.settings, "pictures": view.records})


def _img(picture: Image.Image, caption: str) -> str:
    small = ' class="small"' if picture.width < PIXELS else ""
    return f'<img{small} src="{_data(to_png(picture))}" alt="{escape(caption)}">'


def _link(png: bytes, name: str, content: str) -> str:
    return f'<a href="{_data(png)}" download="{escape(name)}">{content}</a>'


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"


def _name(view: View) -> str:
    """A file's name that says what is on it: the caption's words and the seed."""
    words = re.sub(r"\W+", "-", view.caption)[:60].strip("-")
    return f"{words or 'picture'}-seed{view.settings['seed']}"
