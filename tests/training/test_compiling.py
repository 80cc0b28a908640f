"""Compiled training and sampling, with and without a compiler."""

from types import SimpleNamespace

import pytest
import torch

from helpers.command import command
from tilewright.errors import UserError
from tilewright.prior import Sampling, Stream, Transformer, sample
from tilewright.prior.compiled_step import compile_function
from tilewright.training.compiling import outside_graphs, should_compile

TINY = ["data.source.train=8", "data.source.validation=8", "data.source.zeroshot=8"]


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "absent"))
    monkeypatch.setenv("CC", str(tmp_path / "absent"))


@pytest.fixture
def a_compiler(monkeypatch, tmp_path):
    (tmp_path / "c++").touch(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    monkeypatch.setenv("CC", str(tmp_path / "c++"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_it_compiles_where_it_is_wanted_and_possible(a_compiler, device):
    assert should_compile(True, device)
    assert should_compile("auto", device)
    assert not should_compile(False, device)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_does_without_a_compiler(no_compiler, device):
    assert not should_compile("auto", device)
    with pytest.raises(UserError, match=r"needs a compiler.*absent"):
        should_compile(True, device)


def test_another_word_is_told():
    with pytest.raises(UserError, match="compile=yes is not a valid setting"):
        should_compile("yes")


def test_a_sampler_says_so(no_compiler):
    stream = Stream(text_length=4, text_vocab=9, grid=2, image_vocab=4)
    prior = Transformer(stream, dim=16, depth=1, heads=2).eval()
    with pytest.raises(UserError, match="needs a compiler"):
        sample(prior, torch.randint(9, (1, 4)), 1, sampling=Sampling(compile=True))


def test_it_is_looked_at_for_a_function_that_was_compiled_before(a_compiler, monkeypatch):
    compile_function(should_compile, "cpu")  # any function; it compiles when it is called
    monkeypatch.setenv("CXX", "absent")
    with pytest.raises(UserError, match="needs a compiler"):
        compile_function(should_compile, "cpu")


def test_a_training_ends_in_one_line_and_leaves_no_run(no_compiler, tmp_path):
    home = SimpleNamespace(data=tmp_path / "data", logs=tmp_path / "logs")
    words = ["stage=dvae", "compile=true", "trainer=cpu", *TINY]
    assert command("train", words, home).startswith("error: compile=true needs a compiler")
    assert not home.logs.exists()


def test_a_function_outside_graphs_runs_eagerly_in_a_compiled_caller():
    compiling = []

    @outside_graphs
    def add_one(x, *, twice=False):
        compiling.append(torch.compiler.is_compiling())
        return x + (2 if twice else 1)

    def caller(x):
        return 3 * add_one(2 * x, twice=True)

    expected = caller(torch.ones(2))
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    assert torch.equal(torch.compile(caller, backend=keep)(torch.ones(2)), expected)
    assert compiling == [False, False]
    assert len(graphs) == 2  # before and after the function
