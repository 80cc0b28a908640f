"""Gradio page: its fields, its buttons and their event handlers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from tilewright.errors import UserError
from tilewright.playground import rendering
from tilewright.playground.session import MAX_CAPTION, Playground, Request
from tilewright.prior import Sampling

# Gradio ships these fonts, so the page fetches none from the internet.
SANS, MONO = (gr.themes.LocalFont(f"IBM Plex {kind}", (400, 700)) for kind in ("Sans", "Mono"))
THEME = gr.themes.Base(
    primary_hue="teal",
    neutral_hue="stone",
    radius_size="sm",
    font=[SANS, "sans-serif"],
    font_mono=[MONO, "monospace"],
)
STYLE = ".gradio-container {max-width: 80rem !important; width: 100%}" + rendering.STYLE

MARK_STOPPED = "() => document.querySelector('.tw-status:has(progress)')?.classList.add('stopped')"


def build_page(
    playground: Playground, settings: Mapping[str, Any], examples: Sequence[str] = ()
) -> gr.Blocks:
    """Builds the page.

    Args:
        playground: generates the images.
        settings: initial values of the fields, by the keys of `conf/demo.yaml`.
        examples: captions to click on.
    """
    with gr.Blocks(
        title="Tilewright",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(3600, 86400),  # deletes uploads older than a day, once per hour
    ) as page:
        gr.Markdown(f"# Tilewright\n{_describe_model(playground)}")
        with gr.Row():
            caption = gr.Textbox(
                settings["prompt"] or "",
                label="Caption",
                info="Content of the images, in words like those of the training captions.",
                max_length=MAX_CAPTION,
                placeholder=examples[0] if examples else "",
                autofocus=True,
                scale=5,
            )
            with gr.Column(scale=1, min_width=220):
                generate = gr.Button("Generate", variant="primary")
                with gr.Row():
                    next_seed = gr.Button("Next seed", size="md", min_width=120)
                    stop = gr.Button("Stop", size="md", min_width=60)
        if examples:
            gr.Examples([[text] for text in examples], caption, label="Examples")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                fields = {"caption": caption, **_build_fields(playground, settings)}
            with gr.Column(scale=3, min_width=300):
                error = gr.HTML(visible=False, apply_default_css=False)
                placeholders = rendering.render_placeholders(settings["n"])
                gallery = gr.HTML(placeholders, apply_default_css=False)

        def handle_request(values: Mapping[Any, Any]) -> Iterator[Mapping[Any, Any]]:
            by_name = {name: values[component] for name, component in fields.items()}
            filled = {name: value for name, value in by_name.items() if value is not None}
            try:
                for snapshot in playground.generate(Request(**filled)):
                    html = rendering.render_snapshot(snapshot)
                    yield {gallery: html, error: gr.HTML(visible=False)}
            except UserError as mistake:
                yield {error: gr.HTML(rendering.render_error(str(mistake)), visible=True)}

        handler: dict[str, Any] = {
            "fn": handle_request,
            "inputs": set(fields.values()),
            "outputs": [gallery, error],
            "show_progress": "hidden",  # the gallery has a progress bar
            "concurrency_id": "generate",  # one generation at a time, for both buttons
            "api_visibility": "private",
        }
        buttons = [generate, next_seed]
        triggers = [generate.click, caption.submit, next_seed.click]
        gr.on(triggers, None, None, buttons, js=_set_interactive(False))
        generation = gr.on([generate.click, caption.submit], **handler)
        seed = fields["seed"]
        next_generation = next_seed.click(None, seed, seed, js="seed => (seed ?? 0) + 1").then(
            **handler
        )
        for event in (generation, next_generation):
            for ended in (event.then, event.failure):
                ended(None, None, buttons, js=_set_interactive(True))
        stop.click(None, cancels=[generation, next_generation], js=MARK_STOPPED)
    return page


def _set_interactive(on: bool) -> str:
    """Returns JavaScript that enables or disables both buttons.

    Gradio drops clicks while a generation runs, so the buttons are disabled meanwhile.
    """
    button = f"{{__type__: 'update', interactive: {str(on).lower()}}}"
    return f"() => [{button}, {button}]"


def _describe_model(playground: Playground) -> str:
    tokenizer = playground.model.image_tokenizer
    side, grid = tokenizer.image_size, tokenizer.grid
    parameters = sum(parameter.numel() for parameter in playground.model.prior.parameters())
    parts = [
        f"prior {playground.run_name}" if playground.run_name else "prior",
        f"{parameters / 1e6:.1f} million parameters",
        f"images of {side} × {side} pixels, {grid} × {grid} image tokens",
        f"ranker: {playground.ranker_name}" if playground.ranker_name else "no ranker",
    ]
    return " · ".join(parts)


def _build_fields(playground: Playground, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Builds the fields below the caption, by their names in `Request`."""
    fields: dict[str, Any] = {}
    fields["n"] = gr.Slider(
        1,
        max(32, settings["n"]),
        settings["n"],
        step=1,
        label="Images",
        info="Number of images to show.",
    )
    fields["best_of"] = gr.Number(
        settings["best_of"] or 0,
        precision=0,
        label="Best of",
        info="Number of candidates to sample. The ranker keeps the best. 0: as many as images.",
        visible=playground.ranker is not None,
    )
    fields["seed"] = gr.Number(
        settings["seed"],
        precision=0,
        label="Seed",
        info="The same seed and settings give the same images.",
    )
    with gr.Accordion("Sampling", open=False):
        fields |= _build_sampling_fields(settings, playground.model.sampling)
    with gr.Accordion("Start from an image", open=False):
        fields |= _build_image_prompt_fields(playground.model.image_tokenizer.grid, settings)
    return fields


def _build_sampling_fields(settings: Mapping[str, Any], recommended: Sampling) -> dict[str, Any]:
    top_p = settings["top_p"] or 1
    return {
        "temperature": gr.Slider(
            0,
            max(2, settings["temperature"]),
            settings["temperature"],
            step=0.05,
            label="Temperature",
            info="Below 1: more similar images. Above 1: more varied images. "
            f"Recommended: {recommended.temperature:g}.",
        ),
        "guidance": gr.Slider(
            0,
            max(5, settings["guidance"]),
            settings["guidance"],
            step=0.1,
            label="Guidance",
            info="Above 1: closer to the caption, with less variety. 1: no guidance. "
            f"Recommended: {recommended.guidance:g}.",
        ),
        "top_k": gr.Number(
            settings["top_k"] or 0,
            precision=0,
            label="Top k",
            info="Samples from the k most likely image tokens. 0: all tokens. "
            f"Recommended: {recommended.top_k or 0}.",
        ),
        "top_p": gr.Slider(
            min(0.05, top_p),
            1,
            top_p,
            step=0.01,
            label="Top p",
            info="Samples from the most likely tokens with this total probability. 1: all tokens. "
            f"Recommended: {recommended.top_p or 1:g}.",
        ),
    }


def _build_image_prompt_fields(grid: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    image: Any = gr.Image(label="Image", sources=["upload", "clipboard"], buttons=[], height=180)
    # Passes the path on, because Gradio does not report an unreadable file to the user.
    image.preprocess = lambda payload: payload and payload.path
    rows = gr.Slider(
        1,
        grid - 1,
        min(settings["rows"], grid - 1),
        step=1,
        precision=0,
        label="Rows kept",
        info=f"Number of rows kept from the top, of {grid}. The model generates the others.",
    )
    return {"image_prompt": image, "rows": rows}
