"""Runs the commands and the Python of the README, docs/, benchmarks/ and the help texts.

Commands run in a size that takes seconds. Those that cannot run are in NOT_RUN, with the reason and
a check that replaces the run. Links must lead to files and headings.

A code block without a language is a list of commands, run one after the other in a new folder.
Other text is a block of the language `text`.
"""

import functools
import re
import runpy
import shutil
import tomllib

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

from helpers import pages, short
from tilewright.cli import app, text_values

# Pages with files, which test_extending.py and test_callbacks.py write and run.
ELSEWHERE = {"docs/extending.md", "docs/callbacks.md"}
PAGES = [page for page in pages.PAGES if pages.name(page) not in ELSEWHERE]
BLOCKS = [block for page in PAGES for block in pages.blocks(page)]
LINKING = [*pages.PAGES, pages.ROOT / "CONTRIBUTING.md", pages.ROOT / "CHANGELOG.md"]


def check_training(words):
    """Checks the configuration of a training command."""
    check_config(words[words.index("src/train.py") + 1 :])


def check_config(words):
    """Composes a training configuration and checks that its targets exist."""
    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        config = compose(
            "train",
            text_values.to_hydra([*words, "run=x", "++image_tokens={grid: 8, vocab: 64}"], "train"),
        )
    for target in targets(OmegaConf.to_container(config, resolve=True)):
        assert callable(get_object(target))


def targets(value):
    """Returns all `_target_`s of a configuration."""
    if isinstance(value, list):
        return [target for item in value for target in targets(item)]
    if not isinstance(value, dict):
        return []
    own = [value["_target_"]] if "_target_" in value else []
    return own + targets(list(value.values()))


def check_benchmark(words):
    """Checks that the settings exist, in the benchmark or in the training that it times."""
    _, script, *words = words
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(pages.ROOT / "benchmarks")
        names = runpy.run_path(str(pages.ROOT / script))["DEFAULTS"]
    others = [word for word in words if re.split("[.=]", word)[0] not in names]
    if script.endswith(("_quality.py", "processes.py")):
        check_config([f"stage={'dvae' if 'dvae' in script else 'prior'}", *others])
    else:
        assert not others


def check_make_target(words):
    _, target, *settings = words
    makefile = (pages.ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:", makefile, re.M)
    for word in settings:
        assert f"$({word.partition('=')[0]})" in makefile


def check_extra(words):
    project = tomllib.loads((pages.ROOT / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"^tilewright\[(\w+)\]$", words[-1]):
        assert extra in project["optional-dependencies"]


def check_dependency(words):
    project = tomllib.loads((pages.ROOT / "pyproject.toml").read_text())["project"]
    package = {"hf": "huggingface_hub"}.get(words[0], words[0])
    assert any(re.match(rf"{package}\b", name) for name in project["dependencies"])


# Commands that are not run: pattern, reason, check that replaces the run.
NOT_RUN = {
    r"python src/train\.py .*trainer=(ddp|fsdp)": (
        "starts a process for each core or GPU, tested in tests/distributed",
        check_training,
    ),
    r"torchrun ": ("starts processes, tested in tests/distributed", check_training),
    r"srun ": ("needs SLURM", check_training),
    r"python benchmarks/": ("takes minutes", check_benchmark),
    r"make ": ("takes minutes", check_make_target),
    r"pip install ": ("needs the network", check_extra),
    r"hf (down|up)load ": ("needs the network", check_dependency),
    r"tensorboard ": ("serves until it is interrupted", check_dependency),
}
# Placeholders of the pages, and their replacements in the project of conftest.py.
STANDS_FOR = {
    "/my/": "my/",
    "data.source.path=german_shapes": "data.source.path=my/images",  # the page's Python writes it
    "{0000..0099}": "{0000..0001}",
    "metric=NAME": "metric=fid",
    "metric.clip=PATH": "metric.clip=clip",
    "dvae/A": "dvae/small",
    "dvae/B": "dvae/of_mine",
    "dvae/NAME": "dvae/small",
    "photo.png": "top.png",
}
# Commands that the examples of a help text assume.
BEFORE = {
    "convert": [
        "src/convert.py family=openai_dvae family.encoder=encoder.pkl family.decoder=decoder.pkl "
        "out=models/openai_dvae trust=true"
    ],
    "eval": ["src/train.py stage=dvae data=emoji", "src/train.py stage=prior data=emoji"],
    "runs": ["src/train.py stage=dvae data=emoji"],
}


def command_groups():
    """Returns commands that run in one folder: of a block, of a help text, or of a sentence."""
    groups = {str(block): block.commands for block in BLOCKS if not block.language}
    seen = [words for commands in groups.values() for words in commands]
    for page in PAGES:
        for words in pages.named_in_prose(page):
            if words not in seen:
                seen.append(words)
                groups[f"{pages.name(page)}: {' '.join(words)}"] = [words]
    for text in pages.HELP:
        before = [["python", *words.split()] for words in BEFORE.get(text.stem, [])]
        new = [words for words in pages.examples(text) if words not in seen]
        if new:
            groups[f"{text.stem}.py --help"] = before + new
    return groups


GROUPS = command_groups()
TEXTS = [" ".join(words) for commands in GROUPS.values() for words in commands]


@pytest.fixture
def home(home, clip, monkeypatch):
    """Project with a CLIP and captions, in which the playground page is built but not served."""
    (home / "captions.txt").write_text("a small red circle\na large blue ring\n")
    (home / "clip").symlink_to(clip)
    serving = pytest.importorskip("tilewright.playground.server")
    monkeypatch.setattr(serving, "serve", lambda page, host, port: page.get_config_file())
    return home


def run(words):
    for text, value in STANDS_FOR.items():
        words = [word.replace(text, value) for word in words]
    out = short.settings_of(words).get("out")
    if out is not None:
        shutil.rmtree(out, ignore_errors=True)
    assert short.run(words) is None, " ".join(words)


@pytest.mark.slow
@pytest.mark.parametrize("commands", GROUPS.values(), ids=GROUPS)
def test_commands_run(commands, home):
    for words in commands:
        text = " ".join(words)
        checks = [check for start, (_, check) in NOT_RUN.items() if re.match(start, text)]
        assert len(checks) <= 1, text
        for check in checks:
            check(words)
        if not checks:
            run(words)


@pytest.mark.parametrize("start", NOT_RUN)
def test_every_exception_is_used(start):
    assert any(re.match(start, text) for text in TEXTS)


@pytest.mark.parametrize("text", STANDS_FOR)
def test_every_placeholder_is_used(text):
    assert any(text in command for command in TEXTS)


# All pages but the ablations, which are a record of trials.
@pytest.mark.parametrize(
    "page", [page for page in pages.PAGES if page.name != "ablations.md"], ids=pages.name
)
def test_a_page_has_at_most_1500_words(page):
    assert len(page.read_text().split()) <= 1500


def test_every_image_is_shown():
    shown = {path.resolve() for page in pages.PAGES for path, _ in pages.links(page)}
    assert set((pages.ROOT / "docs" / "images").iterdir()) <= shown


def test_block_languages_are_known():
    assert {block.language for block in BLOCKS} <= {"", "text", "python", "mermaid"}


@pytest.mark.parametrize("page", LINKING, ids=map(pages.name, LINKING))
def test_links_lead_to_files_and_headings(page):
    for path, anchor in pages.links(page):
        assert path.exists(), path
        assert not anchor or anchor in pages.anchors(path), anchor


@functools.lru_cache(maxsize=1)
def python_blocks():
    """Returns the Python blocks by page; those of one page run one after the other."""
    blocks = {}
    for block in BLOCKS:
        if block.language == "python":
            blocks.setdefault(block.page, []).append(block)
    return blocks


@pytest.mark.slow
@pytest.mark.parametrize("page", python_blocks())
def test_python_runs(page, home):
    names = {}
    for block in python_blocks()[page]:
        exec(compile(block.text, str(block), "exec"), names)
