"""Values that are text: taken exactly as typed, by every command."""

import json
import re
import shlex
from fnmatch import fnmatchcase

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from helpers import untrained
from helpers.command import SMALL, results, run
from tilewright import configs, runs
from tilewright.cli import app, text_values
from tilewright.runs import environment

# Keys whose value is a word of a list, a number, or a mapping. Hydra reads it by its grammar.
OTHER_KEYS = (
    *(
        "*_target_",
        "data._convert_",
        "*stage",
        "data",
        "metric",
        "family",
        "family.heads",
        "compile",
        "device",
        "weights",
    ),
    *("host", "*extractor", "*resize", "*monitor", "callbacks.best*", "*tokenizer"),
    *("best_of", "top_k", "top_p", "temperature", "guidance", "likelihood.min_log_scale"),
    "likelihood.maps",
    *(
        "data.*transform",
        "data.source.image_keys",
        "data.source.train",
        "data.source.captions_per_file",
        "image_tokens.*",
        "family.image_size",
        "family.pixels",
        "caption",
        "caption.*",
        "tokenizer.cleaning",
        "tokenizer.vocab_size",
        "lora.layers",
        "loss.*",
    ),
    *("model.network.padding_mode", "model.network.pattern", "model.network.norm"),
    *("model.network.codebook", "model.network.quantizer", "callbacks.samples.captions"),
    *("model.network.mlp", "model.network.positions", "callbacks.overfitting"),
    *("sampling.*", "trainer.*"),
)
CAPTIONS = [
    *("Kreis in Grün", "a dog's ball", "red circle, blue ring", "wow!", "a red circle (large)"),
    *('say "hi"', "日本語の円", "a red circle = round", "7", "true", "null", "red;blue", "a\nb"),
    *("🎈", "a ${x} ring", "[red]", "{a: 1}", "", " spaces ", "ends with \\", "\\'", "???", "a: b"),
    *("\\${x}", "#5", "~", "-x", "--help=1", "${", "\t", "%", "a\\\\"),
]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
PRINTABLE = st.text(st.characters(exclude_categories=["C"]))
SIGNS = st.text(st.sampled_from("\\'\"${}[]()a,=: \n\t?~#%;!"))


def package(file):
    """Returns the key under which Hydra puts the contents of a file of conf/."""
    header = re.match(r"# @package (\S+)", file.read_text())
    if header:
        return header[1].replace("_global_", "")
    return ".".join(file.relative_to(app.CONF).parent.parts)


def leaves(value, key):
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in {"defaults", "hydra"}:
                yield from leaves(item, f"{key}.{name}".lstrip("."))
    else:
        yield key, value


def conf_leaves():
    files = [file for file in app.CONF.rglob("*.yaml") if (app.CONF / "hydra") not in file.parents]
    contents = [(yaml.safe_load(file.read_text()) or {}, package(file)) for file in files]
    return [leaf for content in contents for leaf in leaves(*content)]


def is_number_or_reference(value):
    return re.fullmatch(r"[\d.e+-]+|\$\{.*\}", str(value)) is not None


def test_every_key_of_conf_is_text_or_known_to_be_something_else():
    undecided = {
        key
        for key, value in conf_leaves()
        if (value is None or isinstance(value, str)) and not is_number_or_reference(value)
        if text_values.reserved_words(key) is None
        if not any(fnmatchcase(key, pattern) for pattern in OTHER_KEYS)
    }
    assert not undecided, "add them to cli/text_values.py, or to OTHER_KEYS"


def test_default_of_a_text_key_can_be_typed():
    for key, value in conf_leaves():
        words = text_values.reserved_words(key)
        if words is not None and key != "prompt" and not isinstance(value, str):
            assert yaml.safe_dump(value).split()[0] in words, key


def read(argument):
    """Returns the value that Hydra reads, and that a configuration then holds."""
    override = OverridesParser.create().parse_override(argument)
    return OmegaConf.to_container(OmegaConf.create({"x": override.value()}), resolve=True)["x"]


@settings(deadline=None)
@given(st.lists(TEXT | SIGNS | st.sampled_from(CAPTIONS), min_size=1, max_size=3))
def test_any_text_is_read_as_typed(captions):
    arguments = [f"prompt={caption}" for caption in captions]
    (argument,) = text_values.to_hydra(arguments, "generate")
    assert read(argument) == captions
    (single,) = text_values.to_hydra(arguments[:1], "demo")
    assert read(single) == captions[0]
    assert text_values.from_hydra(single) == arguments[0]


@settings(deadline=None)
@given(st.lists(TEXT | SIGNS, min_size=2, max_size=3))
def test_repeated_key_is_a_sweep_over_any_text(names):
    (argument,) = text_values.to_hydra([f"run_name={name}" for name in names], "train")
    override = OverridesParser.create().parse_override(argument)
    assert override.is_sweep_override()
    jobs = [f"run_name={value}" for value in override.sweep_string_iterator()]
    assert [read(job) for job in jobs] == names
    assert [text_values.from_hydra(job) for job in jobs] == [f"run_name={name}" for name in names]


@settings(deadline=None)
@given(PRINTABLE | SIGNS.filter(lambda text: text != "???"))  # OmegaConf's missing value
@example("a\x85b")
def test_any_text_survives_saving_loading_and_building(text):
    config = OmegaConf.create(
        {"_target_": "builtins.dict", "b": "${a}!", "a": configs.escape(text)}
    )
    loaded = OmegaConf.create(configs.to_yaml(config))
    assert configs.instantiate(loaded) == {"a": text, "b": f"{text}!"}


def test_words_of_a_key_keep_their_meaning():
    arguments = ["run=null", "resume=true", "init=False", "prompt=null", "n=3", "+out=a b"]
    quoted = text_values.to_hydra(arguments, "demo")
    assert [read(argument) for argument in quoted] == [None, True, False, "null", 3, "a b"]
    assert quoted[-1] == "+out='a b'"


def test_home_folder_is_expanded_in_paths_alone(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    arguments = ["paths.data=~/x", "out=~", "dvae=./~/x", "prompt=~/x", "run_name=~"]
    values = [read(argument) for argument in text_values.to_hydra(arguments, "demo")]
    assert values == ["/home/me/x", "/home/me", "./~/x", "~/x", "~"]


def test_other_arguments_are_left_to_hydra():
    arguments = ["--config-dir=a b", "~callbacks.frechet", "metric=fid,kid", "n={a: 1}", "x"]
    assert text_values.to_hydra(["-m", *arguments], "eval") == [*arguments, "-m"]


@pytest.mark.parametrize(
    "argument", ["data.source.split=train[:10%]", "data.source.split={train: a, validation: b}"]
)
def test_split_is_text_or_a_mapping(argument):
    (quoted,) = text_values.to_hydra([argument], "train")
    value = argument.partition("=")[2]
    assert read(quoted) == ({"train": "a", "validation": "b"} if "{" in value else value)


def test_captions_reach_the_records_as_typed(copied, tmp_path):
    arguments = [f"prompt={caption}" for caption in CAPTIONS]
    out = tmp_path / "a folder, with (all) = ${signs} 'of' \"text\""
    run(copied, "generate", *arguments, "n=1", "device=cpu", f"out={out}")
    pictures = json.loads((out / "pictures.json").read_text())["pictures"]
    assert [picture["prompt"] for picture in pictures] == CAPTIONS


ODD = "a b, (c) = 'd' \"e\" ü {f} [g] #"


def test_odd_paths_and_names_survive_training_resuming_and_evaluating(home):
    home.logs = home.folder / f"${{logs}} {ODD}"
    images = untrained.write_images(home.folder / f"${{images}} {ODD}")
    name = f"run ${{x}} {ODD}"
    data = ["data=folder", f"data.source.path={images}", "data.image_size=16"]
    small = [text for text in SMALL if not text.startswith("data.source.")]
    arguments = ["stage=dvae", *data, f"run_name={name}", "~callbacks.frechet", *small]
    run(home, "train", *arguments)
    folder = home.logs / "dvae" / name
    config = runs.load_config(folder)
    assert (config.run_name, config.run) == (name, str(folder))
    assert data[1] in config.overrides
    (entry,) = environment.load(folder)
    assert shlex.split(entry["command"])[4:] == arguments
    run(home, "train", "stage=dvae", f"resume={folder}", "trainer.max_steps=8")
    config = runs.load_config(folder)
    assert (config.run_name, config.data.source.path) == (name, str(images))
    run(home, "eval", "metric=reconstruction", "images=8", "metric.frechet=false", f"run={folder}")
    assert results(folder, "reconstruction")


@pytest.mark.slow
def test_sweep_over_text_trains_on_each(home):
    names = ["a, b", "c 'd'"]
    arguments = [f"run_name={name}" for name in names]
    run(home, "train", "-m", "stage=dvae", *arguments, "~callbacks.frechet", *SMALL)
    for index, name in enumerate(names):
        (entry,) = environment.load(home.logs / "dvae" / f"{name}_{index}")
        words = shlex.split(entry["command"])  # of this job alone
        assert "stage=dvae" in words
        assert not {"-m", *arguments} & {*words}
