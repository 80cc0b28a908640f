"""Image generation behind the playground page."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tilewright.data.truncation import truncation_warning
from tilewright.errors import UserError
from tilewright.pipeline import TextToImage
from tilewright.playground.rendering import render_snapshot
from tilewright.playground.session import Playground, Request, render_partial
from tilewright.prior import Sampling
from tilewright.reranking import LikelihoodRanker
from tilewright.viz.images import to_pil

CAPTION = "picture number 3"
ROW = 4  # pixels


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    colors = np.random.default_rng(0).integers(256, size=(20, 24, 3), dtype=np.uint8)
    Image.fromarray(colors).save(path)
    return str(path)


def test_previews_show_each_sampled_row_above_gray(playground, model):
    *previews, last = playground.generate(Request(CAPTION, n=3))
    assert [preview.progress for preview in previews] == [0.25, 0.5, 0.75, 1.0]
    tokens = model.sample_tokens([CAPTION], 3)
    for rows, preview in enumerate(previews, start=1):
        assert not preview.records
        partial = tokens.clone()
        partial[:, :, rows:] = -1
        for image, expected in zip(preview.images, render_partial(model, partial)[0], strict=True):
            assert image == to_pil(expected)
            assert (np.asarray(image)[rows * ROW :] == 128).all()
            assert np.asarray(image)[: rows * ROW].std() > 0
    assert last.progress == 1
    assert len(last.records) == 3


def test_the_images_equal_those_of_the_model(model):
    request = Request(f"  {CAPTION}\n", n=3, seed=5, top_k=4, guidance=2)
    *_, last = Playground(model).generate(request)
    sampling = Sampling(top_k=4, guidance=2)
    assert last.images == model([CAPTION], 3, seed=5, sampling=sampling)[0]
    assert last.records == [{"prompt": CAPTION, "candidate": index} for index in range(3)]
    assert last.settings == {"seed": 5, "sampling": vars(sampling)}
    assert last.note.startswith("3 images, in ")


def test_fields_without_a_value_are_those_that_the_model_recommends(model):
    sampling = Sampling(0.5, top_k=3, top_p=0.9, guidance=2)
    model = TextToImage(model.prior, model.image_tokenizer, model.tokenizer, sampling=sampling)
    *_, last = Playground(model, weights="bfloat16").generate(Request(CAPTION, n=1))
    assert last.settings["sampling"] == {**vars(sampling), "weights": "bfloat16"}
    request = Request(CAPTION, n=1, temperature=0, top_k=0, top_p=1, guidance=1)
    *_, last = Playground(model).generate(request)
    assert last.settings["sampling"] == vars(Sampling(0))


def test_the_ranker_keeps_the_best_candidates(playground, model):
    first, *_, last = playground.generate(Request(CAPTION, n=2, best_of=9))
    assert len(first.images) == len(last.images) == 2
    assert first.note == "Generating 9 candidates"
    assert last.note.startswith("2 images, the best of 9, in ")
    brightness = model.generate([CAPTION], 9).images[0].mean(dim=(1, 2, 3))
    best = brightness.sort(descending=True, stable=True)
    assert [record["candidate"] for record in last.records] == best.indices[:2].tolist()
    assert [record["score"] for record in last.records] == pytest.approx(best.values[:2].tolist())
    all_images = model([CAPTION], 9)[0]
    assert last.images == [all_images[index] for index in best.indices[:2]]
    settings = json.loads(json.dumps(last.settings))
    assert settings["best_of"] == 9
    assert (settings["run"], settings["steps"], settings["ranker"]) == ("tiny", 7, "brightness")


def test_images_start_from_the_image_prompt(playground, model, photo):
    *previews, last = playground.generate(Request(CAPTION, n=4, image_prompt=photo, rows=2))
    prompt, ranker = Image.open(photo), playground.ranker
    expected = model.generate([CAPTION], 4, image_prompt=prompt, rows=2, ranker=ranker)
    assert last.images == [to_pil(image) for image in expected.images[0]]
    top_rows = [np.asarray(image)[: 2 * ROW] for image in previews[1].images]
    assert all((rows == top_rows[0]).all() for rows in top_rows)
    assert last.settings["image_prompt"] == "photo.png"
    assert last.settings["rows"] == 2
    *_, free = playground.generate(Request(CAPTION, n=4))
    assert last.images != free.images


def test_the_batch_size_does_not_change_the_images(model):
    def generate(batch_size):
        playground = Playground(model, batch_size=batch_size, preview_fraction=1)
        return list(playground.generate(Request(CAPTION, n=5)))

    one_batch, three_batches = generate(128), generate(2)
    assert len(three_batches) == 3 * 4 + 1  # batches, rows, the result
    assert three_batches[-1].images == one_batch[-1].images
    assert [snapshot.progress for snapshot in three_batches[3:5]] == pytest.approx([0.4, 0.5])
    assert (np.asarray(three_batches[3].images[4]) == 128).all()


def test_a_small_preview_fraction_limits_the_previews(model):
    playground = Playground(model, preview_fraction=1e-6)
    snapshots = list(playground.generate(Request(CAPTION, n=1)))
    assert [bool(snapshot.records) for snapshot in snapshots] == [False, True]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"caption": ""}, "type what the images should show"),
        ({"caption": "  \n "}, "type what the images should show"),
        ({"caption": 1001 * "a"}, "has 1001 characters: shorten it to 1000"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"guidance": math.inf}, "guidance=inf"),
        ({"temperature": "hot"}, "temperature=hot"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 10**30}, "seed=1000"),
        ({"seed": math.nan}, "seed=nan"),
        ({"n": math.nan}, "n=nan"),
        ({"n": 1.5}, "n=1.5"),
        ({"image_prompt": "photo", "rows": math.nan}, "rows=nan"),
        ({"n": 0}, "n=0 is not possible"),
        ({"n": 4, "best_of": 3}, "raise best_of"),
        ({"n": 4, "best_of": -1}, "best_of=-1 is not possible"),
        ({"n": 4, "best_of": 65}, "at most 64"),
        ({"n": 65}, "at most 64"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"image_prompt": "photo", "rows": 0}, "rows=0"),
        (
            {"image_prompt": "photo", "rows": 4},
            "rows=4 is not possible: .* from 1 to 3",
        ),
        ({"image_prompt": "missing.png"}, "missing.png"),
    ],
)
def test_an_invalid_request_is_a_one_line_error_before_sampling(model, photo, values, message):
    if values.get("image_prompt") == "photo":
        values = {**values, "image_prompt": photo}
    playground = Playground(model, ranker=lambda *_: torch.zeros(1, 1), max_candidates=64)
    with pytest.raises(UserError, match=message) as caught:
        next(playground.generate(Request(**{"caption": CAPTION, **values})))
    assert "\n" not in str(caught.value)


def test_likelihood_ranker_needs_a_prior_that_has_seen_empty_captions(model):
    Playground(model, LikelihoodRanker())  # it is unknown
    arguments = (model.prior, model.image_tokenizer, model.tokenizer)
    with pytest.raises(UserError, match=r"^LikelihoodRanker needs .* model\.caption_dropout=0:"):
        Playground(TextToImage(*arguments, caption_dropout=0), LikelihoodRanker())


def test_best_of_without_a_ranker_is_an_error(model):
    with pytest.raises(UserError, match="needs a ranker"):
        next(Playground(model).generate(Request(CAPTION, n=1, best_of=2)))


def test_caption_that_is_cut_is_shown(playground, model):
    caption = " ".join(["picture"] * (model.tokenizer.length + 2))
    snapshots = list(playground.generate(Request(caption, n=1)))
    expected = truncation_warning(model.tokenizer, [caption])
    assert {snapshot.warning for snapshot in snapshots} == {expected}
    assert "longer than" in snapshots[0].warning
    assert " and drops " in render_snapshot(snapshots[-1])
    assert " and drops " not in render_snapshot(replace(snapshots[-1], warning=None))
