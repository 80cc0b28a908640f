"""Configuration of a resumed run: the example in the module's docstring, and its limits."""

import re
import shlex
import sys
import textwrap
from contextlib import contextmanager

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from helpers.command import run as run_command
from tilewright import runs
from tilewright.cli import app, resume, settings
from tilewright.distributed import launch
from tilewright.errors import UserError


@contextmanager
def command_line(*arguments):
    """Composes the configuration of `train.py` as Hydra does, and yields it."""
    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        config = compose("train", list(arguments), return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        yield config


def saved_run(*arguments, **changes):
    """Returns the configuration that a training with these arguments saves."""
    with command_line(*arguments) as config:
        choices = settings.choices()
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        config.update(run="logs/dvae/a", run_name="a", choices=choices, overrides=list(arguments))
        config = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    return OmegaConf.merge(config, changes)


def resumed(saved, *arguments):
    with command_line(*arguments):
        return resume.resumed_config(saved)


def leaves(config):
    """Returns all leaves of a configuration by their full keys."""
    plain = OmegaConf.to_container(config, resolve=True)
    return dict(_leaves(plain))


def _leaves(value, key=""):
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}".lstrip("."))
    else:
        yield key, value


def example():
    """Returns the two command lines and the two YAML blocks of the module's docstring."""
    blocks = re.findall(r"(?:^    .*\n)+", resume.__doc__, re.M)
    first, before, second, after = map(textwrap.dedent, blocks)
    arguments = [shlex.split(line)[2:] for line in (first, second)]
    return arguments, [OmegaConf.create(text) for text in (before, after)]


def test_example_of_the_docstring():
    (trained_by, resumed_by), (before, after) = example()
    saved = saved_run(*trained_by, model=before.model)
    assert leaves(OmegaConf.masked_copy(saved, list(before))).items() >= leaves(before).items()
    with command_line(*resumed_by) as config:
        assert config.model.learning_rate.then.start == 0.004  # as the example says of conf/
    config = resumed(saved, *resumed_by)
    assert leaves(config).items() >= leaves(after).items()
    changed = {key for key, value in leaves(config).items() if leaves(saved)[key] != value}
    schedules = {key for key in changed if key.startswith("model.")}
    assert changed - schedules == {"overrides", "trainer.max_steps"}
    assert all(re.search(r"\.(steps|at)$", key) for key in schedules)


def test_settings_of_the_first_command_line_are_kept():
    saved = saved_run("stage=dvae", "data.batch_size=8", "trainer.max_steps=10")
    config = resumed(saved, "stage=dvae", "resume=true", "trainer.max_steps=20")
    assert (config.data.batch_size, config.trainer.max_steps) == (8, 20)
    assert config.overrides == ["stage=dvae", "data.batch_size=8", "trainer.max_steps=20"]


def test_another_trainer_drops_the_hardware_settings_of_the_old_one():
    hardware = ["trainer.devices=2", "trainer.accelerator=cpu"]
    saved = saved_run("stage=dvae", "trainer=ddp", *hardware, "trainer.max_steps=10")
    config = resumed(saved, "stage=dvae", "resume=true", "trainer=cpu")
    assert config.choices.trainer == "cpu"
    assert config.trainer.devices != 2
    assert config.trainer.max_steps == 10
    assert not any(text in config.overrides for text in hardware)


def test_a_removed_key_is_removed_from_the_run():
    saved = saved_run("stage=dvae")
    config = resumed(saved, "stage=dvae", "resume=true", "~callbacks.frechet")
    assert "frechet" in saved.callbacks
    assert "frechet" not in config.callbacks


@pytest.mark.parametrize("override", ["model=dvae_paper", "data=folder"])
def test_another_option_of_a_group_is_refused(override):
    saved = saved_run("stage=dvae")
    extra = ["data.source.path=x"] if override == "data=folder" else []
    group = override.partition("=")[0]
    with pytest.raises(
        UserError, match=f"{override} cannot change .* {group}={saved.choices[group]}"
    ):
        resumed(saved, "stage=dvae", "resume=true", override, *extra)


PRIOR = ["stage=prior", "dvae=a", "image_tokens.grid=8", "image_tokens.vocab=64"]


@pytest.mark.parametrize(
    ("stage", "change", "trained"),
    [
        (["stage=dvae"], "model.network.n_hid=64", "weights that are made for .*n_hid=32"),
        (["stage=dvae"], "model.network.padding_mode=zeros", "padding_mode=replicate"),
        (["stage=dvae"], "data.image_size=64", "data.image_size=32"),
        (["stage=dvae"], "model._target_=x.Module", "_target_=tilewright.dvae.DiscreteVAEModule"),
        (["stage=dvae"], "likelihood.maps=unit", "weights that are made for .*maps=logits"),
        (["stage=dvae"], "likelihood.sigma=0.2", "was trained with likelihood.sigma=0.07"),
        (["stage=dvae"], "seed=7", "was trained with seed=0"),
        (["stage=dvae"], "data.seed=7", "data.seed=0"),
        (["stage=dvae"], "data.source.seed=5", "data.source.seed=0"),
        (["stage=dvae"], "data.source.train=7", "data.source.train=40000"),
        (["stage=dvae"], "data.source._target_=x.Source", "ShapesSource"),
        (["stage=dvae"], "data.max_pixels=9", "data.max_pixels=89478485"),
        (["stage=dvae"], "data.overfit_batches=1", "data.overfit_batches=0"),
        (PRIOR, "tokenizer.length=64", "tokenizer.length=32"),
        (PRIOR, "model.muon=false", "model.muon=True"),
        (PRIOR, "dvae=b", "dvae=a"),
        (PRIOR, "data.image_tokenizer.run=b", "data.image_tokenizer.run=a"),
    ],
)
def test_key_that_weights_or_data_depend_on_is_refused(stage, change, trained):
    filled_in = {}
    if stage is PRIOR:
        filled_in = {"dvae": "a", "image_tokens": {"grid": 8, "vocab": 64}}
    saved = saved_run(*stage, **filled_in)
    message = f"{change} cannot change a resumed run, which .*{trained}: leave it out"
    with pytest.raises(UserError, match=f"(?i){message}"):  # YAML's true is printed as True
        resumed(saved, stage[0], "resume=true", change)


@pytest.mark.parametrize(
    "change", ["data.source.root=/moved", "data.batch_size=8", "model.weight_decay=0.1"]
)
def test_key_that_neither_weights_nor_data_depend_on_may_change(change):
    config = resumed(saved_run(*PRIOR), PRIOR[0], "resume=true", change)
    key, _, value = change.partition("=")
    assert str(OmegaConf.select(config, key)) == value


def test_another_batch_size_is_refused_if_the_run_repeats_its_first_batches():
    saved = saved_run("stage=dvae", "data.batch_size=8", "data.overfit_batches=1")
    with pytest.raises(UserError, match=r"data\.batch_size=4 cannot change .* batches of 8 rows"):
        resumed(saved, "stage=dvae", "resume=true", "data.batch_size=4")


def test_change_of_a_branch_is_refused_by_the_changed_key():
    saved = saved_run("stage=dvae")
    with pytest.raises(UserError, match=r"data\.source\.seed=5 cannot change"):
        resumed(saved, "stage=dvae", "resume=true", "data.source={seed: 5}")


def test_repeated_settings_are_accepted():
    arguments = [*PRIOR, "seed=3", "data.source.train=7", "tokenizer.length=9"]
    saved = saved_run(*arguments)
    assert resumed(saved, *arguments, "resume=true").tokenizer.length == 9


def test_debug_options_that_only_observe_last_until_the_next_resume():
    saved = saved_run("stage=dvae", "trainer.max_steps=10")
    config = resumed(saved, "stage=dvae", "resume=true", "debug=anomaly")
    assert (config.choices.debug, config.trainer.detect_anomaly) == ("anomaly", True)
    changed = {key for key, value in leaves(config).items() if leaves(saved).get(key) != value}
    assert changed == {"trainer.detect_anomaly", "choices.debug", "overrides"}
    config = resumed(config, "stage=dvae", "resume=true", "debug=profile")
    assert (config.choices.debug, config.trainer.detect_anomaly) == ("profile", False)
    assert config.trainer.profiler._target_.endswith("SimpleProfiler")
    config = resumed(config, "stage=dvae", "resume=true")
    assert config == saved


@pytest.mark.parametrize("option", ["default", "overfit"])
def test_debug_options_that_change_the_training_are_refused(option):
    saved = saved_run("stage=dvae")
    with pytest.raises(UserError, match=f"debug={option} cannot change .* use debug=anomaly or"):
        resumed(saved, "stage=dvae", "resume=true", f"debug={option}")
    trained = saved_run("stage=dvae", f"debug={option}")
    trained.choices.debug = option
    assert resumed(trained, "stage=dvae", "resume=true", f"debug={option}") == trained
    with pytest.raises(UserError, match=f"debug=anomaly cannot change .* has debug={option}"):
        resumed(trained, "stage=dvae", "resume=true", "debug=anomaly")


def test_a_typed_value_counts_also_where_conf_has_it_now():
    saved = saved_run("stage=dvae", callbacks={"ema": {"decay": 0.5}})
    default = saved_run("stage=dvae").callbacks.ema.decay
    assert resumed(saved, "stage=dvae").callbacks.ema.decay == 0.5
    config = resumed(saved, "stage=dvae", f"callbacks.ema.decay={default}")
    assert config.callbacks.ema.decay == default != 0.5


def test_what_follows_from_a_typed_default_follows_it():
    default = saved_run("stage=dvae").trainer.max_steps
    saved = saved_run("stage=dvae")
    saved.trainer.max_steps = saved.model.learning_rate.then.steps = 10  # of an earlier conf/
    config = resumed(saved, "stage=dvae", f"trainer.max_steps={default}")
    assert config.trainer.max_steps == config.model.learning_rate.then.steps == default


ENCODER = {"_target_": "tilewright.data.CaptionEncoder", "path": "/t5", "length": 32, "width": 8}


def tuned_run():
    """Configuration of a fine-tuned prior whose source reads a text encoder."""
    saved = saved_run("experiment=finetune", "init=/model", *PRIOR[1:])
    saved.overrides = ["experiment=finetune", "init=/model"]
    saved.choices.caption = "encoder"
    saved.caption = saved.tokenizer = saved.data.tokenizer = ENCODER
    stream = {"_target_": "tilewright.prior.CaptionStream", "text_length": 32, "features": 8}
    saved.model.network.stream = {**stream, "grid": 8, "image_vocab": 64}
    return saved


def test_the_text_encoder_of_a_fine_tuned_run_may_move(tmp_path, monkeypatch):
    (tmp_path / "moved").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["stage=prior", "caption=encoder", "caption.path=moved"]
    config = resumed(tuned_run(), *words)
    moved = {**ENCODER, "path": str(tmp_path / "moved")}  # absolute, for any working directory
    assert config.caption == config.tokenizer == config.data.tokenizer == moved
    assert config.model.network == tuned_run().model.network
    with pytest.raises(UserError, match=r"caption\.length=16 cannot change a resumed run"):
        resumed(tuned_run(), *words, "caption.length=16")


@pytest.mark.parametrize("likelihood", [None, {"_target_": "tilewright.dvae.Laplace"}])
def test_a_run_from_weights_of_an_earlier_version_keeps_its_likelihood(likelihood):
    saved = saved_run("stage=dvae", "init=/model")
    network = {"_target_": "tilewright.dvae.VQGAN", "image_size": 32, "grid": 2, "num_tokens": 8}
    saved.model.network = {**network, **({"likelihood": likelihood} if likelihood else {})}
    del saved.likelihood["maps"]
    config = resumed(saved, "stage=dvae", "model.learning_rate.steps=7")
    assert config.model.network == saved.model.network
    assert config.likelihood == saved.likelihood


def write_run(logs, saved):
    """Writes a run with an empty checkpoint, and returns its folder."""
    folder = logs / saved.stage / "a"
    runs.create(folder, saved)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    return folder


@pytest.mark.parametrize(
    ("arguments", "change"),
    [
        (["stage=dvae", "data=folder", "data.source.path=/old"], "data.source.path=/new"),
        (["stage=dvae", "data=hub", "data.source.name=/old"], "data.source.name=/new"),
        (["stage=dvae", "loss=adversarial"], "loss.adversarial.weight=0.1"),
        (["stage=dvae", "model=dvae_vqgan"], "model.betas=[0.8, 0.9]"),
        (["stage=dvae", "trainer=ddp_powersgd"], "trainer.strategy.warmup_updates=7"),
        (["experiment=prior_paper", *PRIOR[1:]], "callbacks.plateau.patience=3"),
        (["experiment=finetune", "init=/model", *PRIOR[1:]], "callbacks.samples.before_after=b"),
    ],
)
def test_key_of_an_option_of_the_run_may_change(tmp_path, arguments, change):
    folder = write_run(tmp_path, saved_run(*arguments))
    words = resume.with_recorded_options([f"resume={folder}", change])
    config = resumed(runs.load_config(folder), *words)
    key, _, value = change.partition("=")
    assert str(OmegaConf.select(config, key)) == value
    assert config.overrides == [*arguments, change] or key in arguments[-1]


def test_train_reads_keys_of_the_options_of_the_run(home):
    folder = write_run(home.logs, saved_run("stage=dvae", "loss=adversarial"))
    change = "loss.adversarial.weight=0.0625"
    for words in ([f"resume={folder}"], ["resume=true", "stage=dvae"]):
        assert "weight: 0.0625" in run_command(home, "train", *words, change, "--cfg", "job")


@pytest.mark.parametrize(
    ("arguments", "change"),
    [
        (["stage=dvae", "model=dvae_vqgan"], "model.betas=[0.8, 0.9]"),
        ([*PRIOR, "model=prior_medium"], "model.weight_decay=0.5"),
    ],
)
def test_run_from_converted_weights_keeps_its_typed_model(tmp_path, arguments, change):
    saved = saved_run(*arguments, "init=/converted")
    saved.choices.update(model="llamagen", family="llamagen")  # as `finetuning.adopt` does
    folder = write_run(tmp_path, saved)
    words = resume.with_recorded_options([f"resume={folder}", change])
    config = resumed(runs.load_config(folder), *words)
    assert config.choices == saved.choices
    assert config.overrides == [*arguments, "init=/converted", change]
    key, _, value = change.partition("=")
    assert str(OmegaConf.select(config, key)) == value
    with pytest.raises(UserError, match=r"model=dvae_small cannot change .* has model=llamagen"):
        resumed(saved, arguments[0], "resume=true", "model=dvae_small")


def test_processes_that_the_first_one_starts_need_no_option_of_the_run(home, monkeypatch):
    """The options may be those of a folder that --config-dir names."""
    saved = saved_run("stage=dvae")
    saved.choices.update(model="mine", debug="mine")
    saved.overrides += ["model=mine", "debug=mine"]
    folder = write_run(home.logs, saved)
    monkeypatch.setattr("sys.argv", ["train.py", "--config-dir=mine", "debug=mine"])
    launch.set_child_arguments(folder, folder / "checkpoints" / "last.ckpt")
    words = sys.argv[1:]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert f"run: {folder}" in run_command(home, "train", *words, "--cfg", "job")


def test_options_of_the_run_come_before_resume_and_do_not_replace_typed_ones(tmp_path):
    trained = ["data=folder", "data.source.path=/old", "trainer=ddp", "debug=anomaly"]
    folder = write_run(tmp_path, saved_run("stage=dvae", *trained))
    newest = ["resume=true", "stage=dvae", f"paths.logs={tmp_path}"]
    for words, expected in (
        ([f"resume={folder}", "trainer=cpu"], ["stage=dvae", "data=folder"]),
        ([f"resume={folder}/checkpoints/last.ckpt"], ["stage=dvae", "data=folder", "trainer=ddp"]),
        (newest, ["data=folder", "trainer=ddp"]),
        (newest[:1], []),  # the command asks for a stage
        (["resume=false", "stage=dvae"], []),
        (["resume=true", "stage=other"], []),  # Hydra reports it
        (["stage=dvae"], []),
    ):
        assert resume.with_recorded_options(words) == [*expected, *words]
    words = ["--config-dir", "mine", f"resume={folder}", "trainer=cpu"]
    expected = [*words[:2], "stage=dvae", "data=folder", *words[2:]]
    assert resume.with_recorded_options(words) == expected
    with pytest.raises(UserError, match="there is no run nowhere"):
        resume.with_recorded_options(["resume=nowhere", "data.source.path=/new"])
