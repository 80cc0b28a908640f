"""What a press of the button draws, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tilewright.errors import UserError
from tilewright.playground.session import Playground, Request, preview
from tilewright.prior import Sampling
from tilewright.viz.images import to_picture

CAPTION = "picture number 3"
ROW = 4  # pixels


def pixels(pictures):
    return [np.asarray(picture) for picture in pictures]


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    colors = np.random.default_rng(0).integers(256, size=(20, 24, 3), dtype=np.uint8)
    Image.fromarray(colors).save(path)
    return str(path)


def test_rows_appear_one_after_another_on_grey(playground, model):
    *drawing, last = playground.draw(Request(CAPTION, n=3))
    assert [view.progress for view in drawing] == [0.25, 0.5, 0.75, 1.0]
    tokens = model.tokens([CAPTION], 3)
    for number, view in enumerate(drawing, start=1):
        assert not view.records
        partial = tokens.clone()
        partial[:, :, number:] = -1
        for picture, wanted in zip(view.pictures, preview(model, partial)[0], strict=True):
            assert picture == to_picture(wanted)
            assert (np.asarray(picture)[number * ROW :] == 128).all()
            assert np.asarray(picture)[: number * ROW].std() > 0
    assert last.progress == 1
    assert len(last.records) == 3


def test_the_pictures_are_those_of_the_model(model):
    (*_, last) = Playground(model).draw(Request(f"  {CAPTION}\n", n=3, seed=5, top_k=4, guidance=2))
    how = {"seed": 5, "sampling": Sampling(top_k=4, guidance=2)}
    assert last.pictures == model([CAPTION], 3, **how)[0]
    assert last.records == [{"prompt": CAPTION, "candidate": number} for number in range(3)]
    assert last.settings == {"seed": 5, "sampling": vars(how["sampling"])}
    assert last.note.startswith("3 pictures, in ")


def test_the_ranker_chooses_and_scores(playground, model):
    views = list(playground.draw(Request(CAPTION, n=2, best_of=9)))
    assert {len(view.pictures) for view in views} == {2}
    assert views[0].note == "Drawing 9 candidates"
    last = views[-1]
    assert last.note.startswith("2 pictures, the best of 9, in ")
    lightness = model.images([CAPTION], 9)[0].mean(dim=(1, 2, 3))
    best = lightness.sort(descending=True, stable=True)
    assert [record["candidate"] for record in last.records] == best.indices[:2].tolist()
    assert [record["score"] for record in last.records] == pytest.approx(best.values[:2].tolist())
    everything = model([CAPTION], 9)[0]
    assert last.pictures == [everything[number] for number in best.indices[:2]]
    settings = json.loads(json.dumps(last.settings))
    assert settings["best_of"] == 9
    assert (settings["run"], settings["ranker"]) == ("tiny", "brightest")


def test_pictures_begin_with_the_one_that_is_given(playground, model, photo):
    *drawing, last = playground.draw(Request(CAPTION, n=4, picture=photo, rows=2))
    given = Image.open(photo)
    want = model.best([CAPTION], 4, image_prompt=given, rows=2, ranker=playground.ranker).images
    assert last.pictures == list(map(to_picture, want[0]))
    # The rows that are given are the same in all pictures, the next ones are not.
    shown = pixels(drawing[1].pictures)
    assert all((picture[: 2 * ROW] == shown[0][: 2 * ROW]).all() for picture in shown)
    assert last.settings["image_prompt"] == "photo.png"
    assert last.settings["rows"] == 2
    free = list(playground.draw(Request(CAPTION, n=4)))[-1]
    assert last.pictures != free.pictures


def test_batches_do_not_change_what_is_drawn(model):
    whole, parts = (
        list(Playground(model, batch_size=size, looking=1).draw(Request(CAPTION, n=5)))
        for size in (128, 2)
    )
    assert len(parts) == 3 * 4 + 1
    assert parts[-1].pictures == whole[-1].pictures
    assert [view.progress for view in parts[3:5]] == pytest.approx([0.4, 0.5])
    assert (np.asarray(parts[3].pictures[4]) == 128).all()


def test_few_views_of_a_fast_drawing(model):
    views = list(Playground(model, looking=1e-6).draw(Request(CAPTION, n=1)))
    assert [bool(view.records) for view in views] == [False, True]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(""), "type a caption"),
        (Request("  \n "), "type a caption"),
        (Request(CAPTION, n=0), "1 or more"),
        (Request(CAPTION, n=4, best_of=3), "raise best_of"),
        (Request(CAPTION, n=4, best_of=-1), "raise best_of"),
        (Request(CAPTION, n=4, best_of=65), "up to 64"),
        (Request(CAPTION, n=65), "up to 64"),
        (Request(CAPTION, temperature=-1.0), "temperature"),
        (Request(CAPTION, top_k=-1), "top_k"),
        (Request(CAPTION, top_p=1.5), "top_p"),
        (Request(CAPTION, picture="photo", rows=0), "keep 1 or more"),
        (Request(CAPTION, picture="photo", rows=4), "rows must be from 1 to 3"),
        (Request(CAPTION, picture="none.png"), "none.png"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_drawn(model, photo, request_, words):
    if request_.picture == "photo":
        request_ = Request(request_.caption, picture=photo, rows=request_.rows)
    playground = Playground(model, ranker=lambda *_: torch.zeros(1, 1), most=64)
    with pytest.raises(UserError, match=words) as caught:
        next(playground.draw(request_))
    assert "\n" not in str(caught.value)


def test_best_of_needs_a_ranker(model):
    with pytest.raises(UserError, match="needs a ranker"):
        next(Playground(model).draw(Request(CAPTION, n=1, best_of=2)))
