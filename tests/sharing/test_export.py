"""Export of runs as models, and loading of models that are broken or malicious."""

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
from tilewright.data import image_tokenizer
from tilewright.dvae import DiscreteVAE
from tilewright.errors import UserError
from tilewright.reranking import ContrastiveRanker
from tilewright.sharing.export import export

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
    """Copy of the exported model that a test may change."""
    return shutil.copytree(exported, tmp_path / "model")


def generate(model, **settings):
    images = model(PROMPTS, n=2, seed=3, **settings)
    return [[image.tobytes() for image in row] for row in images]


def change_config(folder, **values):
    config = OmegaConf.load(folder / "config.json")
    for key, value in values.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    (folder / "config.json").write_text(json.dumps(OmegaConf.to_container(config)))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def error_of_loading(model):
    """Loads a model, which must fail with one line, and returns that line."""
    with pytest.raises(UserError) as caught:
        TextToImage.from_pretrained(model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_exported_model_generates_the_same_images_as_the_run(logs, exported):
    run = TextToImage.from_run(logs / "prior" / "untrained")
    assert generate(TextToImage.from_pretrained(exported)) == generate(run)


def test_a_model_contains_safetensors_json_and_a_card(exported):
    network = {"config.json", "model.safetensors"}
    with_tokenizer = {*network, "tokenizer.json"}
    expected = {*with_tokenizer, "README.md", "samples.png"}
    expected |= {f"dvae/{name}" for name in network}
    expected |= {f"ranker/{name}" for name in with_tokenizer}
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert files == expected
    assert [path.name for path in exported.parent.iterdir()] == ["mine"]


def test_a_model_contains_no_paths_of_this_machine(exported, logs):
    for file in [*exported.rglob("*.json"), exported / "README.md"]:
        assert str(logs.parent) not in file.read_text()
        assert "somewhere" not in file.read_text()


def test_the_card_has_settings_that_are_not_paths(logs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_images").mkdir()
    run = shutil.copytree(logs / "dvae" / "untrained", tmp_path / "run")
    public = ["stage=dvae", "data=hub", "caption.path=t5-small", "+data.source.name=me/images"]
    private = ["data.source.path=german_shapes", "paths.logs=mine", "dvae=a/b", "+folder=/home/me"]
    private += ["data.source.name=my_images", "data.cache=here", "~/x=1"]
    config = runs.load_config(run)
    config.overrides = [*private, *public]
    runs.create(run, config)
    result = {"metric": "psnr", "value": 1.5, "split": "validation", "images": 9}
    data = {"data.source.name": "me/images", "ranker.run": "/home/me/first"}
    (run / "eval" / "reconstruction").mkdir(parents=True)
    results = run / "eval" / "reconstruction" / "results.json"
    results.write_text(json.dumps([{**result, **data}]))
    export(run, tmp_path / "out", name="a")
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"- settings: `{' '.join(public)}`" in text
    assert "| data.source.name=me/images ranker.run=first |" in text


def test_the_card_has_front_matter_results_and_samples(exported):
    card = ModelCard.load(exported / "README.md")
    assert card.data.library_name == "tilewright"
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "text-to-image"
    assert "dall-e" in card.data.tags
    assert "| fd | 12.35 | validation | 9 | resize=clean |" in card.text
    for text in ("# mine", "data: folder", "updates: 7", "seed=5", "best_of=64", "4x4", "16x16"):
        assert text in card.text
    assert "(samples.png)" in card.text
    with Image.open(exported / "samples.png") as image:
        metadata = json.loads(image.text["tilewright"])
    assert (len(metadata["captions"]), metadata["n"], metadata["seed"]) == (3, 2, 5)


def test_the_card_has_the_results_of_its_weights_only(logs, tmp_path):
    run = shutil.copytree(logs / "dvae" / "untrained", tmp_path / "run")
    (run / "eval" / "reconstruction").mkdir(parents=True)
    result = {"metric": "psnr", "value": 1.5, "split": "validation", "images": 9}
    rows = [{**result, "steps": steps} for steps in (3, 5, 7)]  # the run's weights have 7 updates
    cards = []
    for name, count in (("current", 3), ("earlier", 1)):
        results = json.dumps(rows[:count])
        (run / "eval" / "reconstruction" / "results.json").write_text(results)
        export(run, tmp_path / name, name="a")
        cards.append((tmp_path / name / "README.md").read_text())
    current, earlier = cards
    assert "| psnr | 1.5 | validation | 9 | steps=7 |\n\n" in current
    assert "Results of earlier weights, which are left out: 2." in current
    assert "steps=5" not in current
    assert "Not evaluated. Results of earlier weights, which are left out: 1." in earlier


def test_the_code_on_the_card_runs(exported, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.S)
    request = {}

    def snapshot_download(name, **settings):
        request.update(name=name, **settings)
        return str(exported)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    variables = {}
    exec(code, variables)
    assert len(variables["images"]) == 4
    assert all(isinstance(image, Image.Image) for image in variables["images"])
    assert request["name"] == "someone/mine"
    assert request["allow_patterns"] == ["*.json", "*.safetensors"]  # no pickles


def test_a_revision_of_a_folder_is_an_error(exported):
    with pytest.raises(UserError, match="revision=v2 names a version on the Hub"):
        TextToImage.from_pretrained(exported, revision="v2")


def test_an_unknown_model_is_a_one_line_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("someone/nothing", "no/such/folder", "../nowhere"):
        assert name in error_of_loading(name)


def test_best_of_uses_the_included_ranker(logs, exported):
    model = TextToImage.from_pretrained(exported)
    ranker = ContrastiveRanker.from_run(logs / "ranker" / "untrained")
    assert generate(model, best_of=6) == generate(model, best_of=6, ranker=ranker)
    assert generate(model, best_of=6) != generate(model)
    without_ranker = TextToImage.from_run(logs / "prior" / "untrained")
    with pytest.raises(UserError, match="needs a ranker"):
        generate(without_ranker, best_of=6)


def test_a_ranker_of_another_image_size_is_not_exported(logs, tmp_path, monkeypatch):
    larger = {**untrained.NETWORKS["ranker"], "image_size": 32}
    monkeypatch.setitem(untrained.NETWORKS, "ranker", larger)
    ranker = untrained.write_run(tmp_path / "logs", "ranker", logs.parent / "images")
    with pytest.raises(UserError, match="ranker reads images of 32 pixels"):
        export(logs / "prior" / "untrained", tmp_path / "out", ranker=ranker, name="x", captions=1)
    assert not (tmp_path / "out").exists()


def test_an_exported_model_can_be_exported_again(exported, tmp_path):
    export(exported, tmp_path / "again", name="again", captions=PROMPTS)
    again, first = (TextToImage.from_pretrained(path) for path in (tmp_path / "again", exported))
    assert generate(again, best_of=4) == generate(first, best_of=4)
    assert runs.trained_steps(tmp_path / "again") == 7


def test_a_failed_export_leaves_no_files(exported, tmp_path):
    with pytest.raises(UserError, match="prompt="):  # an exported model has no data
        export(exported, tmp_path / "again", name="again")
    assert list(tmp_path.iterdir()) == []


def test_the_images_of_a_dvaes_data_are_published_on_request_only(logs, tmp_path, monkeypatch):
    sizes, encode = [], DiscreteVAE.encode
    monkeypatch.setattr(
        DiscreteVAE,
        "encode",
        lambda network, images: sizes.append(len(images)) or encode(network, images),
    )
    monkeypatch.setattr(image_tokenizer, "BATCH_PIXELS", 1)
    run = logs / "dvae" / "untrained"
    export(run, tmp_path / "without", name="a")
    assert "samples.png" not in (tmp_path / "without" / "README.md").read_text()
    assert not list((tmp_path / "without").glob("*.png"))
    export(run, tmp_path / "with", name="a", images=3)
    assert (tmp_path / "with" / "samples.png").is_file()
    assert sizes == [1, 1, 1]
    with pytest.raises(UserError, match="is a model, which has no data: leave images=3 out"):
        export(tmp_path / "with", tmp_path / "again", name="a", images=3)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("stage", ["dvae", "ranker"])
def test_a_dvae_and_a_ranker_can_be_exported_alone(logs, tmp_path, stage):
    run, out = logs / stage / "untrained", tmp_path / stage
    export(run, out, name=stage)
    assert ModelCard.load(out / "README.md").data.pipeline_tag is None
    exported_weights = runs.load_network(out).state_dict()
    for name, value in runs.load_network(run).state_dict().items():
        assert torch.equal(value, exported_weights[name])
    assert runs.find(logs, stage, str(out)) == out


def test_a_config_that_would_run_code_is_refused(model, tmp_path):
    mark = tmp_path / "mark"
    call = {"_target_": "os.system", "command": f"touch {mark}"}
    for part in (model, model / "dvae", model / "ranker"):
        content = (part / "config.json").read_text()
        settings = json.loads(content)["model"]["network"]
        keys = ["model__network", *(f"model__network__{key}" for key in settings)]
        if part != model / "dvae":
            keys.append("tokenizer")
        for key in keys:
            change_config(part, **{key: call})
            assert "'os.system'" in error_of_loading(model)
            (part / "config.json").write_text(content)
    assert not mark.exists()
    TextToImage.from_pretrained(model)


def test_a_missing_or_damaged_file_is_named(model):
    files = [path for path in model.rglob("*") if path.suffix in {".json", ".safetensors"}]
    assert len(files) == 8
    for path in files:
        content = path.read_bytes()
        path.unlink()
        assert path.name in error_of_loading(model)
        for damaged in (b"", content[: len(content) // 2], b"\xff\xfe", b"[1, 2]"):
            path.write_bytes(damaged)
            assert path.name in error_of_loading(model)
        path.write_bytes(content)
    TextToImage.from_pretrained(model)


@pytest.mark.parametrize("stage", ["os", None, ["prior"]])
def test_a_config_without_a_known_stage_is_refused(model, stage):
    change_config(model, stage=stage)
    assert "dvae, prior, ranker" in error_of_loading(model)


def test_a_dvae_is_not_a_text_to_image_model(model):
    assert "stage=dvae" in error_of_loading(model / "dvae")
    change_config(model / "dvae", stage="prior")
    assert "tilewright.prior" in error_of_loading(model)


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("", {"model__network__dim": 32}, ["fit"]),
        ("", {"model__network__depth": 3}, ["fit", "blocks.2"]),
        ("", {"model__network__color": "red"}, ["color", "Transformer"]),
        ("", {"model__network__heads": "many"}, ["model.network"]),
        ("", {"model": None}, ["model.network", "_target_"]),
        ("dvae", {"model__network__num_tokens": 16}, ["fit"]),
        ("dvae", {"model__network__grid": 16}, ["fit"]),
        ("ranker", {"tokenizer__length": 5}, ["ranker", "12 text tokens", "5 from 280"]),
    ],
)
def test_settings_that_do_not_match_the_weights_are_refused(model, part, values, words):
    change_config(model / part, **values)
    message = error_of_loading(model)
    for word in words:
        assert word in message


@pytest.mark.parametrize("change", [{"grid": 8}, {"num_tokens": 16}])
def test_a_dvae_of_another_grid_or_codebook_is_refused(model, change):
    network = {**untrained.NETWORKS["dvae"], **change}
    config = OmegaConf.create({"stage": "dvae", "choices": {}, "model": {"network": network}})
    shutil.rmtree(model / "dvae")
    runs.save_network(model / "dvae", config, instantiate(network).state_dict())
    assert "4x4 image tokens from a codebook of 8" in error_of_loading(model)


def test_weights_of_another_shape_are_refused_by_name(model):
    change_weights(model, lambda weights: weights.update({"norm.weight": torch.ones(5)}))
    assert "norm.weight" in error_of_loading(model)
    change_weights(model, lambda weights: weights.pop("norm.weight"))
    assert "norm.weight" in error_of_loading(model)


def test_a_pickle_is_not_loaded(model, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "mark"), "w"))

    torch.save({"state_dict": Bomb()}, model / "model.safetensors")
    assert "model.safetensors" in error_of_loading(model)
    (model / "model.safetensors").unlink()
    (model / "checkpoints").mkdir()
    torch.save({"state_dict": Bomb()}, model / "checkpoints" / "best.ckpt")
    error_of_loading(model)
    assert not (tmp_path / "mark").exists()


def test_a_tokenizer_of_another_kind_or_size_is_refused(model):
    file = model / "tokenizer.json"
    original = json.loads(file.read_text())

    def write(**changes):
        file.write_text(json.dumps({**original, **changes}))

    # Few tokens, but one with an index that has no embedding in the prior.
    write(model={**original["model"], "vocab": {**original["model"]["vocab"], "zzz": 5000}})
    assert "5001 tokens" in error_of_loading(model)
    write(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"})
    assert "byte-level BPE" in error_of_loading(model)
    write(pre_tokenizer=None)
    assert "byte-level BPE" in error_of_loading(model)


def test_the_truncation_of_a_tokenizer_file_is_ignored(model):
    file = model / "tokenizer.json"
    truncation = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    file.write_text(json.dumps({**json.loads(file.read_text()), "truncation": truncation}))
    tokens = TextToImage.from_pretrained(model).tokenizer.encode(PROMPTS)
    assert (tokens >= 0).sum() > len(PROMPTS)


def test_a_path_that_does_not_exist_is_not_explained_by_the_hub():
    with pytest.raises(UserError) as caught:
        TextToImage.from_pretrained("/tmp/nope/nope/nope")
    assert "is neither a folder nor a name on the Hub" in str(caught.value)
    assert "repo_type" not in str(caught.value)
