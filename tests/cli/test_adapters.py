"""Fine-tuning with adapters by commands: training, resuming, exports, and a base that moves."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from helpers import untrained
from helpers.command import fail, run
from tilewright import TextToImage, runs
from tilewright.errors import UserError
from tilewright.sharing.export import export

pytest.importorskip("peft")

PROMPT = "a red circle"
SHORT = [
    "experiment=finetune",
    "trainer=cpu",
    "data=folder",
    "data.source.validation_fraction=0.3",
    "data.batch_size=4",
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
    "trainer.limit_val_batches=1",
    "model.learning_rate.steps=1",
    "callbacks.samples.count=1",
    "~callbacks.frechet",
]
LORA = ["lora=default", "lora.rank=2", "model.learning_rate.then.start=0.05"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, a run with adapters on it, and both exports of this run."""
    folder = tmp_path_factory.mktemp("home")
    logs = untrained.all_stages(folder)
    base = folder / "base"
    export(logs / "prior" / "untrained", base, name="base", captions=[PROMPT], n=1)
    home = SimpleNamespace(data=folder / "data", logs=logs, base=base, folder=folder)
    home.settings = [*SHORT, f"data.source.path={folder / 'images'}"]
    run(home, "train", *home.settings, *LORA, f"init={base}", "run_name=adapted")
    home.run = logs / "prior" / "adapted"
    card = [f"run={home.run}", f"prompt={PROMPT}", "n=1"]
    home.merged, home.adapter = folder / "merged", folder / "adapter"
    run(home, "export", *card, f"out={home.merged}")
    home.output = run(home, "export", *card, f"out={home.adapter}", "adapter=true")
    return home


def generate(path):
    return TextToImage.from_pretrained(path).generate([PROMPT], n=2).images


def copy_run(home, tmp_path):
    """Copies the run and its base side by side, as they are in `home`."""
    shutil.copytree(home.base, tmp_path / "base")
    return shutil.copytree(home.run, tmp_path / home.run.relative_to(home.folder))


def test_checkpoint_holds_only_adapters_their_average_and_their_moments(home):
    saved = torch.load(home.run / "checkpoints" / "last.ckpt", weights_only=True)
    values = 2 * sum(2 * (16 + width) for width in (48, 16, 64, 64))  # of two blocks
    for kind in ("state_dict", "current_model_state"):
        assert all("lora_" in name for name in saved[kind])
        assert sum(value.numel() for value in saved[kind].values()) == values
    (optimizer,) = saved["optimizer_states"]
    moments = [v for state in optimizer["state"].values() for v in state.values()]
    assert sum(value.numel() for value in moments if value.dim() > 1) <= 2 * values
    network = sum(value.numel() for value in runs.load_weights(home.base).values())
    assert values < network / 4


def test_run_and_both_exports_generate_the_same_images(home):
    expected = generate(home.run)
    assert torch.equal(generate(home.merged), expected)
    assert torch.equal(generate(home.adapter), expected)
    assert not torch.equal(generate(home.base), expected)


def test_adapter_has_the_files_of_peft_and_none_of_its_base(home):
    from peft import PeftModel

    assert not (home.adapter / runs.WEIGHTS).exists()
    assert not (home.adapter / runs.DVAE).exists()
    assert f"Its base is {home.base}" in home.output
    assert "low-rank adapters" in (home.adapter / "README.md").read_text()
    assert str(home.folder) not in (home.adapter / "README.md").read_text()
    expected = runs.load_network(home.adapter)
    model = PeftModel.from_pretrained(runs.load_network(home.base), str(home.adapter))
    merged = model.merge_and_unload()
    for name, value in expected.named_parameters():
        torch.testing.assert_close(merged.get_parameter(name), value)


def test_adapter_names_its_base_on_the_hub(home, tmp_path):
    out = tmp_path / "shared"
    card = [f"prompt={PROMPT}", "n=1", "base=someone/base", "adapter=true"]
    run(home, "export", f"run={home.adapter}", f"out={out}", *card)
    assert runs.load_config(out).base.path == "someone/base"
    for file in ("README.md", "config.json", "adapter_config.json"):
        assert "someone/base" in (out / file).read_text()
        assert str(home.folder) not in (out / file).read_text()


def test_every_command_takes_an_adapter(home, tmp_path):
    run(home, "generate", f"run={home.adapter}", f"prompt={PROMPT}", f"out={tmp_path / 'images'}")
    assert list((tmp_path / "images").glob("*.png"))
    rate = [f"model.learning_rate.then.{end}=0" for end in ("start", "end")]
    run(home, "train", *home.settings, *rate, f"init={home.adapter}", "run_name=continued")
    continued = runs.load_weights(home.logs / "prior" / "continued")
    expected = runs.load_weights(home.merged)
    assert all(torch.equal(continued[name], value) for name, value in expected.items())


def test_run_resumes_where_its_base_has_moved(home, tmp_path):
    copied = copy_run(home, tmp_path)
    moved = shutil.move(home.base, home.folder / "elsewhere")
    try:
        assert torch.equal(generate(copied), generate(home.merged))  # the base moved along
        run(home, "train", "stage=prior", f"resume={copied}", "trainer.max_steps=5")
        line = fail(home, "train", "stage=prior", f"resume={home.run}", "trainer.max_steps=5")
        assert f"{home.run} has adapters of {home.base}, which does not exist" in line
        assert f"set base.path in {home.run / 'config.yaml'} to its new place" in line
        with pytest.raises(UserError, match=f"base.path in {home.adapter / 'config.json'}"):
            generate(home.adapter)
        assert runs.load_config(copied).base.path == str((tmp_path / "base").resolve())
    finally:
        shutil.move(moved, home.base)


def test_another_base_is_refused(home, tmp_path):
    copied = copy_run(home, tmp_path)
    config = runs.load_config(copied)
    config.base.path = str(home.merged)
    runs.create(copied, config)
    line = fail(home, "train", "stage=prior", f"resume={copied}", "trainer.max_steps=5")
    assert f"{copied} has adapters of {home.merged}, whose weights have changed since" in line
    with pytest.raises(UserError, match="whose weights have changed since"):
        runs.load_network(copied)
    config.base.path = str(copied)
    runs.create(copied, config)
    with pytest.raises(UserError, match="has adapters of itself"):
        runs.load_network(copied)


def test_stranger_may_not_name_another_class_for_adapters(home, tmp_path):
    copied = shutil.copytree(home.adapter, tmp_path / "adapter")
    file = copied / "config.json"
    text = file.read_text()
    for target in ("os.system", "tilewright.training.AtomicCheckpointIO"):
        file.write_text(text.replace("tilewright.training.LowRankAdapters", target))
        with pytest.raises(UserError, match=target.rpartition(".")[2]):
            runs.load_network(copied)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["init=false"], ["lora=default adapts a trained network", "set init=PATH"]),
        (
            ["model.adam_bits=8", "model.muon=false", "trainer=fsdp"],
            ["trainer=fsdp", "adam_bits=8"],
        ),
    ],
)
def test_impossible_training_is_refused_before_a_run_is_made(home, settings, expected):
    before = set(home.logs.rglob("*"))
    init = [] if "init=false" in settings else [f"init={home.base}"]
    line = fail(home, "train", *home.settings, *LORA, *init, *settings)
    for text in expected:
        assert text in line
    assert set(home.logs.rglob("*")) == before


def test_adapters_need_a_stage_of_linear_layers(home):
    source = home.logs / "dvae" / "untrained"
    line = fail(home, "train", "stage=dvae", "lora=default", f"init={source}", "data=folder")
    assert "lora=default adapts linear layers, and a dVAE has convolutions" in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run={base}", "adapter=true"], "was trained without lora= and has no adapters"),
        (["run={run}", "base=someone/base"], "base=someone/base is for adapter=true"),
    ],
)
def test_impossible_export_is_refused(home, tmp_path, arguments, expected):
    arguments = [text.format(base=home.base, run=home.run) for text in arguments]
    assert expected in fail(home, "export", *arguments, f"out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_settings_of_adapters_stay_when_a_run_resumes(home):
    for changes in (["lora=default", "lora.rank=4"], ["lora=none"]):
        line = fail(home, "train", "stage=prior", f"resume={home.run}", *changes)
        assert changes[-1] in line
        assert "cannot change a resumed run" in line
    assert OmegaConf.to_container(runs.load_config(home.run).lora)["rank"] == 2
