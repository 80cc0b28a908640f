"""A model that travels: what lies in it, that it draws the same, and what a broken one says."""

import json
import re
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

from helpers import untrained
from tilewright import TextToImage, runs
from tilewright.errors import UserError
from tilewright.reranking import ContrastiveRanker
from tilewright.sharing.export import export, written_whole

PROMPTS = ["a blue ring", "ein roter Kreis 赤"]


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return untrained.all_stages(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def exported(logs, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "mine"
    prior, ranker = (logs / stage / "untrained" for stage in ("prior", "ranker"))
    export(prior, out, ranker=ranker, name="someone/mine", license="mit", captions=3, n=2, seed=5)
    return out


@pytest.fixture
def model(exported, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(exported, tmp_path / "model")


def drawn(model, **how):
    return [[p.tobytes() for p in row] for row in model(PROMPTS, n=2, seed=3, **how)]


def change(folder, **values):
    config = OmegaConf.load(folder / "config.json")
    for key, value in values.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    (folder / "config.json").write_text(json.dumps(OmegaConf.to_container(config)))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def refused(model):
    with pytest.raises(UserError) as caught:
        TextToImage.from_pretrained(model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_exported_model_draws_equal_pictures(logs, exported):
    prior = TextToImage.from_run(logs / "prior" / "untrained")
    assert drawn(TextToImage.from_pretrained(exported)) == drawn(prior)


def test_a_model_is_safetensors_and_json_and_a_card(exported):
    part = {"config.json", "model.safetensors"}
    with_text = {*part, "tokenizer.json"}
    wanted = {*with_text, "README.md", "samples.png"}
    wanted |= {f"dvae/{name}" for name in part} | {f"ranker/{name}" for name in with_text}
    files = {str(p.relative_to(exported)) for p in exported.rglob("*") if p.is_file()}
    assert files == wanted
    assert [path.name for path in exported.parent.iterdir()] == ["mine"]


def test_a_model_tells_nothing_of_where_it_was_made(exported, logs):
    for file in [*exported.rglob("*.json"), exported / "README.md"]:
        assert str(logs.parent) not in file.read_text()
        assert "somewhere" not in file.read_text()


def test_the_card_has_front_matter_figures_and_samples(exported):
    card = ModelCard.load(exported / "README.md")
    assert card.data.library_name == "tilewright"
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "text-to-image"
    assert "dall-e" in card.data.tags
    assert "| fd | 12.35 | validation | 9 | resize=clean |" in card.text
    for words in ("# mine", "data: folder", "updates: 7", "seed=5", "best_of=64", "4x4", "16x16"):
        assert words in card.text
    assert "(samples.png)" in card.text
    with Image.open(exported / "samples.png") as picture:
        told = json.loads(picture.text["tilewright"])
    assert (len(told["captions"]), told["n"], told["seed"]) == (3, 2, 5)


def test_the_cards_three_lines_run(exported, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.S)
    lines = [line for line in code.splitlines() if line]
    assert len(lines) == 3
    asked = {}

    def snapshot_download(name, **how):
        asked.update(name=name, **how)
        return str(exported)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    names = {}
    exec(code, names)
    assert all(isinstance(picture, Image.Image) for picture in names["pictures"])
    assert asked["name"] == "someone/mine"
    assert asked["allow_patterns"] == ["*.json", "*.safetensors"]  # no pickle is fetched


def test_a_name_that_nobody_has_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("someone/nothing", "no/such/folder", "../nowhere"):
        assert f"no folder {name}" in refused(name)


def test_the_ranker_that_came_along_chooses(logs, exported):
    model = TextToImage.from_pretrained(exported)
    own = ContrastiveRanker.from_run(logs / "ranker" / "untrained")
    assert drawn(model, best_of=6) == drawn(model, best_of=6, ranker=own)
    assert drawn(model, best_of=6) != drawn(model)
    alone = TextToImage.from_run(logs / "prior" / "untrained")
    with pytest.raises(UserError, match="needs a ranker"):
        drawn(alone, best_of=6)


def test_a_model_can_be_exported_again(exported, tmp_path):
    with pytest.raises(UserError, match="prompt="):
        export(exported, tmp_path / "again", name="again")
    assert list(tmp_path.iterdir()) == []
    export(exported, tmp_path / "again", name="again", captions=PROMPTS)
    again, first = (TextToImage.from_pretrained(path) for path in (tmp_path / "again", exported))
    assert drawn(again, best_of=4) == drawn(first, best_of=4)
    assert runs.trained_steps(tmp_path / "again") == 7


def test_a_dvae_and_a_ranker_travel_alone(logs, tmp_path):
    for stage in ("dvae", "ranker"):
        export(logs / stage / "untrained", tmp_path / stage, name=stage)
        card = ModelCard.load(tmp_path / stage / "README.md")
        assert card.data.pipeline_tag is None
        own, there = (runs.load_network(f) for f in (logs / stage / "untrained", tmp_path / stage))
        for name, value in own.state_dict().items():
            assert torch.equal(value, there.state_dict()[name])
        assert runs.find(logs, stage, str(tmp_path / stage)) == tmp_path / stage
    assert (tmp_path / "dvae" / "samples.png").is_file()
    assert not (tmp_path / "ranker" / "samples.png").exists()


def test_what_fails_leaves_nothing(tmp_path):
    def half(out):
        with written_whole(out) as folder:
            (folder / "file").write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        half(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_would_run_code_is_refused(model, tmp_path):
    mark = tmp_path / "mark"
    call = {"_target_": "os.system", "command": f"touch {mark}"}
    for part in (model, model / "dvae", model / "ranker"):
        content = (part / "config.json").read_text()
        settings = json.loads(content)["model"]["network"]
        places = ["model__network", *(f"model__network__{key}" for key in settings)]
        if part != model / "dvae":
            places.append("tokenizer")
        for place in places:
            change(part, **{place: call})
            assert "'os.system'" in refused(model)
            (part / "config.json").write_text(content)
    assert not mark.exists()
    TextToImage.from_pretrained(model)


def test_a_model_with_a_part_missing_is_refused_by_name(model):
    whole = [path for path in model.rglob("*") if path.suffix in {".json", ".safetensors"}]
    assert len(whole) == 8
    for path in whole:
        content = path.read_bytes()
        path.unlink()
        assert path.name in refused(model)
        for part in (b"", content[: len(content) // 2], b"\xff\xfe", b"[1, 2]"):
            path.write_bytes(part)
            assert path.name in refused(model)
        path.write_bytes(content)
    TextToImage.from_pretrained(model)


@pytest.mark.parametrize("values", [{"stage": "os"}, {"stage": None}, {"stage": ["prior"]}])
def test_a_model_of_no_stage_is_refused(model, values):
    change(model, **values)
    assert "its stage is not one of dvae, prior, ranker" in refused(model)


def test_a_dvae_is_no_model_that_draws(model):
    assert "stage=dvae" in refused(model / "dvae")
    change(model / "dvae", stage="prior")
    assert "not a class of tilewright.prior" in refused(model)


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("", {"model__network__dim": 32}, ["do not fit"]),
        ("", {"model__network__depth": 3}, ["do not fit", "blocks.2"]),
        ("", {"model__network__color": "red"}, ["color", "Transformer"]),
        ("", {"model__network__heads": "many"}, ["model.network"]),
        ("", {"tokenizer__length": 13}, ["12 text tokens of 280", "13 of 280", "belong"]),
        ("", {"tokenizer__vocab_size": 999}, ["12 text tokens of 280", "12 of 999"]),
        ("", {"tokenizer__vocab_size": 256}, ["tokenizer.json", "tokenizer.vocab_size=256"]),
        ("", {"tokenizer": None}, ["tokenizer", "no _target_"]),
        ("", {"model": None}, ["model.network", "no _target_"]),
        ("dvae", {"model__network__num_tokens": 16}, ["do not fit"]),
        ("dvae", {"model__network__grid": 16}, ["do not fit"]),
        ("ranker", {"tokenizer__length": 5}, ["ranker", "12 text tokens", "5 of 280"]),
    ],
)
def test_settings_that_do_not_fit_are_refused(model, part, values, words):
    change(model / part, **values)
    line = refused(model)
    for word in words:
        assert word in line


@pytest.mark.parametrize("wrong", [{"grid": 8}, {"num_tokens": 16}])
def test_a_dvae_of_another_grid_or_codebook_is_refused(model, wrong):
    network = {**untrained.NETWORKS["dvae"], **wrong}
    config = OmegaConf.create({"stage": "dvae", "choices": {}, "model": {"network": network}})
    shutil.rmtree(model / "dvae")
    runs.save_network(model / "dvae", config, instantiate(network).state_dict())
    line = refused(model)
    assert "grid of 4x4 of 8 image tokens" in line
    assert "do not belong together" in line


def test_weights_of_another_shape_are_refused_by_name(model):
    change_weights(model, lambda w: w.update({"norm.weight": torch.ones(5)}))
    assert "norm.weight" in refused(model)
    change_weights(model, lambda w: w.pop("norm.weight"))
    assert "norm.weight" in refused(model)


def test_a_pickle_in_the_place_of_weights_is_not_opened(model, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "mark"), "w"))

    torch.save({"state_dict": Bomb()}, model / "model.safetensors")
    assert "model.safetensors cannot be read" in refused(model)
    (model / "model.safetensors").unlink()
    (model / "checkpoints").mkdir()
    torch.save({"state_dict": Bomb()}, model / "checkpoints" / "best.ckpt")
    refused(model)
    assert not (tmp_path / "mark").exists()


def test_a_tokenizer_that_is_another_is_refused(model):
    def content(**values):
        return json.dumps({**whole, **values})

    file = model / "tokenizer.json"
    whole = json.loads(file.read_text())
    # Few tokens, but a number that the prior has no embedding for.
    gap = {**whole["model"], "vocab": {**whole["model"]["vocab"], "zzz": 5000}}
    file.write_text(content(model=gap))
    assert "5001 tokens" in refused(model)
    word_level = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    file.write_text(content(model=word_level))
    assert "no byte-level BPE" in refused(model)
    file.write_text(content(pre_tokenizer=None))
    assert "no byte-level BPE" in refused(model)
    cut = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    file.write_text(content(truncation=cut))
    assert (TextToImage.from_pretrained(model).tokenizer.encode(PROMPTS) >= 0).sum() > len(PROMPTS)
