"""The page: its fields, its buttons, and what a press of them does."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from tilewright.errors import UserError
from tilewright.playground import cards
from tilewright.playground.session import Playground, Request

# Fonts that come with Gradio, or else the system's: none is fetched from the internet.
SANS, MONO = (gr.themes.LocalFont(f"IBM Plex {kind}", (400, 700)) for kind in ("Sans", "Mono"))
THEME = gr.themes.Base(
    primary_hue="teal",
    neutral_hue="stone",
    radius_size="sm",
    font=[SANS, "sans-serif"],
    font_mono=[MONO, "monospace"],
)
STYLE = ".gradio-container {max-width: 80rem !important; width: 100%}" + cards.STYLE

MARK_STOPPED = "() => document.querySelector('.view-bar:has(progress)')?.classList.add('stopped')"


def build(
    playground: Playground, settings: Mapping[str, Any], examples: Sequence[str] = ()
) -> gr.Blocks:
    """The page.

    Args:
        settings: what the fields hold at first: the keys of `conf/demo.yaml`.
        examples: captions to click on.
    """
    with gr.Blocks(
        title="Tilewright",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(3600, 86400),  # uploaded pictures, after a day and when the page ends
    ) as page:
        gr.Markdown(f"# Tilewright\n{_about(playground)}")
        with gr.Row():
            caption = gr.Textbox(
                settings["prompt"] or "",
                label="Caption",
                info="What the pictures should show, in words like those it was trained on.",
                placeholder=examples[0] if examples else "",
                autofocus=True,
                scale=5,
            )
            with gr.Column(scale=1, min_width=220):
                draw = gr.Button("Draw", variant="primary")
                with gr.Row():
                    others = gr.Button("Draw others", size="md", min_width=120)
                    stop = gr.Button("Stop", size="md", min_width=60)
        if examples:
            gr.Examples([[text] for text in examples], caption, label="For example")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                fields = {"caption": caption, **_fields(playground, settings)}
            with gr.Column(scale=3, min_width=300):
                mistake = gr.HTML(visible=False, apply_default_css=False)
                view = gr.HTML(cards.blank(settings["n"]), apply_default_css=False)

        def show(values: Mapping[Any, Any]) -> Iterator[Mapping[Any, Any]]:
            held = {name: values[field] for name, field in fields.items()}
            request = Request(**{name: value for name, value in held.items() if value is not None})
            try:
                for seen in playground.draw(request):
                    yield {view: cards.to_html(seen), mistake: gr.HTML(visible=False)}
            except UserError as error:
                yield {mistake: gr.HTML(cards.mistake(str(error)), visible=True)}

        how: dict[str, Any] = {
            "fn": show,
            "inputs": set(fields.values()),
            "outputs": [view, mistake],
            "show_progress": "hidden",  # the view says how far it is
            "concurrency_id": "draw",  # one drawing at a time, whichever button asks for it
            "api_visibility": "private",
        }
        buttons = [draw, others]
        asked = [draw.click, caption.submit, others.click]
        gr.on(asked, None, None, buttons, js=_interactive(False))
        drawing = gr.on([draw.click, caption.submit], **how)
        seed = fields["seed"]
        another = others.click(None, seed, seed, js="seed => (seed ?? 0) + 1").then(**how)
        for ended in (drawing.then, drawing.failure, another.then, another.failure):
            ended(None, None, buttons, js=_interactive(True))
        stop.click(None, cancels=[drawing, another], js=MARK_STOPPED)
    return page


def _interactive(on: bool) -> str:
    """JavaScript that lets both buttons be pressed, or not: a busy page would drop the press."""
    button = f"{{__type__: 'update', interactive: {str(on).lower()}}}"
    return f"() => [{button}, {button}]"


def _about(playground: Playground) -> str:
    names, prior = playground.names, playground.model.prior
    tokenizer = playground.model.image_tokenizer
    side, grid = tokenizer.image_size, tokenizer.grid
    parameters = sum(parameter.numel() for parameter in prior.parameters())
    said = [
        f"prior {names['run']}" if "run" in names else "a prior",
        f"{parameters / 1e6:.1f} million parameters",
        f"pictures of {side} × {side} pixels, {grid} × {grid} image tokens",
        f"ranker: {names['ranker']}" if "ranker" in names else "no ranker",
    ]
    return " · ".join(said)


def _fields(playground: Playground, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields under the caption, by the names that `Request` has for them."""
    grid = playground.model.image_tokenizer.grid
    fields: dict[str, Any] = {}
    fields["n"] = gr.Slider(
        1,
        max(32, settings["n"]),
        settings["n"],
        step=1,
        label="Pictures",
        info="How many are shown.",
    )
    fields["best_of"] = gr.Number(
        settings["best_of"] or 0,
        precision=0,
        label="Best of",
        info="Draw so many, and show those that the ranker likes best. 0 draws no more.",
        visible=playground.ranker is not None,
    )
    fields["seed"] = gr.Number(
        settings["seed"],
        precision=0,
        label="Seed",
        info="The same seed and settings draw the same pictures.",
    )
    with gr.Accordion("Sampling", open=False):
        fields["temperature"] = gr.Slider(
            0,
            max(2, settings["temperature"]),
            settings["temperature"],
            step=0.05,
            label="Temperature",
            info="Below 1 pictures are more alike, above 1 more daring.",
        )
        fields["guidance"] = gr.Slider(
            0,
            max(5, settings["guidance"]),
            settings["guidance"],
            step=0.1,
            label="Guidance",
            info="Above 1: more of the caption, less variety. 1 is none.",
        )
        fields["top_k"] = gr.Number(
            settings["top_k"] or 0,
            precision=0,
            label="Top k",
            info="Only the k likeliest image tokens. 0 takes all.",
        )
        fields["top_p"] = gr.Slider(
            0.05,
            1,
            settings["top_p"] or 1,
            step=0.05,
            label="Top p",
            info="Only the likeliest that together hold this probability. 1 takes all.",
        )
    with gr.Accordion("Begin with a picture", open=False):
        picture: Any = gr.Image(
            label="Picture",
            sources=["upload", "clipboard"],
            buttons=[],
            height=180,
        )
        # The file itself, for `open_picture`: of a broken one Gradio has nothing to say.
        picture.preprocess = lambda payload: payload and payload.path
        fields["picture"] = picture
        fields["rows"] = gr.Slider(
            1,
            grid - 1,
            min(settings["rows"], grid - 1),
            step=1,
            precision=0,
            label="Rows kept",
            info=f"So many of its {grid} rows stay, from the top; the rest is drawn.",
        )
    return fields
