"""Every command of the README, of docs/ and of the help texts is run, in a size that takes seconds,
or stands in the table of those that are not, with the reason. Every piece of Python is run; links
lead somewhere.

A block of code without a language is a list of commands, run one after the other in a folder of its
own. Other text than that is a block of the language `text`.
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
from tilewright.cli import app

ELSEWHERE = {"docs/extending.md"}  # tests/docs/test_extending.py runs it, with the files in it
PAGES = [page for page in pages.PAGES if pages.name(page) not in ELSEWHERE]
BLOCKS = [block for page in PAGES for block in pages.blocks(page)]
LINKING = [*pages.PAGES, pages.ROOT / "CONTRIBUTING.md", pages.ROOT / "benchmarks" / "README.md"]


def composed(words):
    """It cannot run here: its configuration is right, and what that names is there."""
    (place,) = (i for i, word in enumerate(words) if word == "src/train.py")
    training(words[place + 1 :])


def training(words):
    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        config = compose("train", [*words, "run=x", "++image_tokens={grid: 8, vocab: 64}"])
    for target in targets(OmegaConf.to_container(config, resolve=True)):
        assert callable(get_object(target))


def targets(value):
    """All `_target_`s of a configuration."""
    if isinstance(value, list):
        return [target for item in value for target in targets(item)]
    if not isinstance(value, dict):
        return []
    own = [value["_target_"]] if "_target_" in value else []
    return own + targets(list(value.values()))


def benchmarks(words):
    """Its settings exist; what is none of its own is one of the training that it times."""
    _, script, *words = words
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(pages.ROOT / "benchmarks")
        names = runpy.run_path(str(pages.ROOT / script))["DEFAULTS"]
    others = [word for word in words if re.split("[.=]", word)[0] not in names]
    if script.endswith(("_quality.py", "processes.py")):
        training([f"stage={'dvae' if 'dvae' in script else 'prior'}", *others])
    else:
        assert not others


def is_a_target(words):
    _, target, *settings = words
    makefile = (pages.ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:", makefile, re.M)
    for word in settings:
        assert f"$({word.partition('=')[0]})" in makefile


def is_an_extra(words):
    project = tomllib.loads((pages.ROOT / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"^tilewright\[(\w+)\]$", words[-1]):
        assert extra in project["optional-dependencies"]


def is_a_dependency(words):
    project = tomllib.loads((pages.ROOT / "pyproject.toml").read_text())["project"]
    package = {"hf": "huggingface_hub"}.get(words[0], words[0])
    assert any(re.match(rf"{package}\b", wanted) for wanted in project["dependencies"])


# What is not run, why, and what is looked at in its place.
NOT_RUN = {
    r"python src/train\.py .*trainer=(ddp|fsdp)": (
        "starts a process for each core or GPU: tests/test_processes.py and test_sharding.py do",
        composed,
    ),
    r"torchrun ": ("starts processes: tests/test_processes.py does", composed),
    r"srun ": ("needs SLURM", composed),
    r"python benchmarks/": ("takes minutes, for figures that a busy machine spoils", benchmarks),
    r"make ": ("takes minutes", is_a_target),
    r"pip install ": ("needs the network", is_an_extra),
    r"hf (down|up)load ": ("needs the network", is_a_dependency),
    r"tensorboard ": ("serves until it is interrupted", is_a_dependency),
}
# What stands for a thing of the reader's, and what it is here.
STANDS_FOR = {
    "/my/": "my/",
    "data.source.path=pictures": "data.source.path=my/pictures",  # made by the page's Python
    "{0000..0099}": "{0000..0001}",
    "metric=NAME": "metric=fid",
    "metric.clip=PATH": "metric.clip=clip",
    "dvae/A": "dvae/small",
    "dvae/B": "dvae/of_mine",
    "dvae/NAME": "dvae/small",
    "photo.png": "top.png",
}
# What a reader has trained before the examples of a help text.
BEFORE = {
    "eval": ["stage=dvae data=emoji", "stage=prior data=emoji"],
    "runs": ["stage=dvae data=emoji"],
}


def groups():
    """Commands that belong together: of a block, of a help text, and each that a sentence names."""
    shown = [block for block in BLOCKS if not block.language]
    found = {str(block): block.commands for block in shown}
    seen = [words for commands in found.values() for words in commands]
    for page in PAGES:
        for words in pages.named_in_prose(page):
            if words not in seen:
                seen.append(words)
                found[f"{pages.name(page)}: {' '.join(words)}"] = [words]
    for text in pages.HELP:
        before = [["python", "src/train.py", *words.split()] for words in BEFORE.get(text.stem, [])]
        new = [words for words in pages.examples(text) if words not in seen]
        if new:
            found[f"{text.stem}.py --help"] = before + new
    return found


GROUPS = groups()
TEXTS = [" ".join(words) for commands in GROUPS.values() for words in commands]


@pytest.fixture
def home(home, clip, monkeypatch):
    """With a CLIP, and with a page that is not served but built."""
    (home / "clip").symlink_to(clip)
    serving = pytest.importorskip("tilewright.playground.server")
    monkeypatch.setattr(serving, "serve", lambda page, host, port: page.get_config_file())
    return home


def run(words):
    for text, value in STANDS_FOR.items():
        words = [word.replace(text, value) for word in words]
    if words[:2] == ["python", "-c"]:
        exec(words[2], {})
        return
    out = short.given(words).get("out")
    if out is not None:
        shutil.rmtree(out, ignore_errors=True)
    assert short.run(words) is None, " ".join(words)


@pytest.mark.slow
@pytest.mark.parametrize("commands", GROUPS.values(), ids=GROUPS)
def test_commands(commands, home):
    for words in commands:
        text = " ".join(words)
        checks = [check for start, (_, check) in NOT_RUN.items() if re.match(start, text)]
        assert len(checks) <= 1, text
        for check in checks:
            check(words)
        if not checks:
            run(words)


@pytest.mark.parametrize("start", NOT_RUN)
def test_an_exception_is_needed(start):
    assert any(re.match(start, text) for text in TEXTS)


@pytest.mark.parametrize("text", STANDS_FOR)
def test_a_substitute_is_needed(text):
    assert any(text in command for command in TEXTS)


def test_languages_of_blocks():
    assert {block.language for block in BLOCKS} <= {"", "text", "python", "mermaid"}


@pytest.mark.parametrize("page", LINKING, ids=map(pages.name, LINKING))
def test_links(page):
    for path, anchor in pages.links(page):
        assert path.exists(), path
        assert not anchor or anchor in pages.anchors(path), anchor


@functools.lru_cache(maxsize=1)
def python():
    """Pieces of Python by page, those of one page to be run one after the other."""
    found = {}
    for block in BLOCKS:
        if block.language == "python":
            found.setdefault(block.page, []).append(block)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", python())
def test_python(page, home):
    names = {}
    for block in python()[page]:
        exec(compile(block.text, str(block), "exec"), names)
