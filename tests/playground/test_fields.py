"""Fields of the page, without a browser."""

import pytest

from tilewright.playground.session import Playground, Request

gr = pytest.importorskip("gradio", reason="the page needs the extra demo")

SETTINGS = {
    **{"prompt": None, "n": 3, "best_of": None, "seed": 0, "rows": 1},
    **{"temperature": 1.0, "guidance": 1.0, "top_k": None, "top_p": None},
}


@pytest.mark.parametrize(
    "change", [{"top_p": 0.03}, {"temperature": 3.0}, {"guidance": 8.0}, {"n": 40}, {"rows": 9}]
)
def test_first_value_of_every_slider_is_one_that_it_accepts(model, change):
    from tilewright.playground.page import build_page

    page = build_page(Playground(model), {**SETTINGS, **change})
    sliders = [block for block in page.blocks.values() if isinstance(block, gr.Slider)]
    assert len(sliders) == 5
    for slider in sliders:
        assert slider.preprocess(slider.value) == slider.value


def test_best_of_0_ranks_as_many_candidates_as_images(playground):
    from tilewright.playground.page import build_page

    page = build_page(playground, SETTINGS)
    (best_of,) = (
        block for block in page.blocks.values() if getattr(block, "label", "") == "Best of"
    )
    assert best_of.info.endswith(" 0: as many as images.")
    *_, last = playground.generate(Request("a ring", n=3, best_of=best_of.value))
    assert last.settings["best_of"] == len(last.records) == 3
    assert all("score" in record for record in last.records)
