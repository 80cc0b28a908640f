"""Folders of runs and models: creating, finding and loading them, and broken ones."""

import json
import multiprocessing
import os
import signal
import time
from itertools import pairwise

import pytest
import torch
from omegaconf import OmegaConf

from tilewright import runs
from tilewright.errors import UserError
from tilewright.training import AtomicCheckpointIO


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    """Trusts torch, whose classes are the networks of these runs."""
    monkeypatch.setenv("TILEWRIGHT_TRUST", "torch")


def config(stage="dvae", name="shapes", **more):
    network = {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2}
    return OmegaConf.create(
        {"stage": stage, "choices": {"data": name}, "model": {"network": network}, **more}
    )


def weights(in_features=3):
    linear = torch.nn.Linear(in_features, 2)
    return {f"network.{name}": value for name, value in linear.state_dict().items()}


def trained(logs, name, *, at=0, stage="dvae", data="shapes", source=None, kinds=("best", "last")):
    run = logs / stage / name
    runs.create(run, config(stage, data, **({"data": {"source": source}} if source else {})))
    (run / "checkpoints").mkdir()
    for kind in kinds:
        file = run / "checkpoints" / f"{kind}.ckpt"
        state = {"state_dict": weights(), "optimizer": [1], "global_step": 3}
        AtomicCheckpointIO().save_checkpoint(state, file)
        os.utime(file, (at, at))
    runs.set_latest(run)
    return run


def message(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_created_run_has_its_resolved_configuration(tmp_path):
    run = tmp_path / "dvae" / "a"
    runs.create(run, config(side=4, twice="${side}"))
    assert runs.load_config(run).twice == 4
    assert "${" not in (run / "config.yaml").read_text()


def test_latest_names_the_last_run_that_was_set(tmp_path):
    for name in ("b", "a b", "c"):
        runs.create(tmp_path / "dvae" / name, config())
        runs.set_latest(tmp_path / "dvae" / name)
        runs.set_latest(tmp_path / "dvae" / "not a run")
        assert runs.follow_latest(tmp_path / "dvae" / "latest") == tmp_path / "dvae" / name
    assert {p.name for p in (tmp_path / "dvae").iterdir()} == {"a b", "b", "c", "latest"}
    moved = (tmp_path / "dvae").rename(tmp_path / "moved")
    assert runs.follow_latest(moved / "latest" / "x" / "y") == moved / "c" / "x" / "y"
    assert runs.load_config(moved / "latest").stage == "dvae"


def test_the_link_of_an_earlier_version_is_followed_and_replaced(tmp_path):
    run = trained(tmp_path, "a")
    latest = tmp_path / "dvae" / "latest"
    latest.unlink()
    latest.symlink_to("a")
    assert runs.find(tmp_path, "dvae", str(latest)) == run.resolve()
    assert runs.find(tmp_path, "dvae") == run.resolve()
    runs.create(tmp_path / "dvae" / "b", config())
    runs.set_latest(tmp_path / "dvae" / "b")
    assert latest.is_file()
    assert not latest.is_symlink()
    assert run.is_dir()


def test_a_folder_in_the_place_of_latest_is_one_line_before_a_run_is_made(tmp_path):
    (tmp_path / "dvae" / "latest").mkdir(parents=True)
    with pytest.raises(UserError, match="latest is a folder") as caught:
        runs.create(tmp_path / "dvae" / "a", config())
    message(caught)
    assert not (tmp_path / "dvae" / "a").exists()


def test_latest_does_not_lead_to_another_folder(tmp_path):
    (tmp_path / "latest").write_text("../../elsewhere\n")
    assert runs.follow_latest(tmp_path / "latest") == tmp_path / "elsewhere"
    (tmp_path / "latest").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="there is no run"):
        runs.find(tmp_path, "dvae", str(tmp_path / "latest"))


def test_newest_run_has_the_newest_checkpoint(tmp_path):
    old = trained(tmp_path, "z", at=100)
    new = trained(tmp_path, "a", at=200, data="emoji")
    runs.create(tmp_path / "dvae" / "untrained", config())
    assert runs.find(tmp_path, "dvae") == new.resolve()
    assert runs.find(tmp_path, "dvae", data=runs.TrainingData("shapes")) == old.resolve()
    assert runs.find(tmp_path, "dvae", data=runs.TrainingData("emoji")) == new.resolve()


def test_newest_run_of_the_same_data_has_the_same_source(tmp_path, caplog):
    caplog.set_level("INFO")
    first = trained(tmp_path, "first", at=100, data="folder", source={"path": "/a"})
    second = trained(tmp_path, "second", at=200, data="folder", source={"path": "/b"})
    a, b, c = (runs.TrainingData("folder", {"path": f"/{name}"}) for name in "abc")
    assert runs.find(tmp_path, "dvae", data=a) == first.resolve()
    assert runs.find(tmp_path, "dvae", data=b) == second.resolve()
    assert f"Using {second}, the newest dvae of the same data" in caplog.text
    with pytest.raises(UserError) as caught:
        runs.find(tmp_path, "dvae", data=c)
    assert f"({second} was trained on data.source.path=/b): train one" in message(caught)
    assert runs.find(tmp_path, "dvae", str(second), a) == second.resolve()
    assert f"{second} was trained on other data: data.source.path=/b" in caplog.text


@pytest.mark.parametrize("content", ["stage: dvae", "a: ["])
def test_newest_run_is_skipped_with_a_warning_if_it_cannot_be_read(tmp_path, caplog, content):
    old = trained(tmp_path, "old", at=100)
    new = trained(tmp_path, "new", at=200)
    (new / "config.yaml").write_text(content)
    assert runs.find(tmp_path, "dvae") == old.resolve()
    (warning,) = caplog.messages
    assert warning.startswith(f"Skipping dvae/new: {new}/config.yaml ")
    with pytest.raises(UserError, match=r"new/config\.yaml"):
        runs.find(tmp_path, "dvae", str(new))


def test_find_by_path(tmp_path):
    run = trained(tmp_path, "a")
    trained(tmp_path, "b", at=100)
    assert runs.find(tmp_path, "dvae", str(run)) == run.resolve()
    runs.set_latest(run)
    assert runs.find(tmp_path, "dvae", str(tmp_path / "dvae" / "latest")) == run.resolve()


def test_message_has_the_command_that_trains_a_missing_run(tmp_path):
    with pytest.raises(UserError) as caught:
        runs.find(tmp_path, "dvae")
    assert "python src/train.py stage=dvae`" in message(caught)
    trained(tmp_path, "a")
    with pytest.raises(UserError) as caught:
        runs.find(tmp_path, "dvae", data=runs.TrainingData("emoji"))
    assert "python src/train.py stage=dvae data=emoji" in message(caught)


def test_wrong_path_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no run nowhere"):
        runs.find(tmp_path, "dvae", "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty is not a run: it has neither config\.yaml"):
        runs.find(tmp_path, "dvae", str(tmp_path / "empty"))
    runs.create(tmp_path / "dvae" / "a", config())
    with pytest.raises(UserError, match="a has no checkpoint yet"):
        runs.find(tmp_path, "dvae", str(tmp_path / "dvae" / "a"))
    prior = trained(tmp_path, "p", stage="prior")
    with pytest.raises(UserError, match="a run of stage=prior: name one of stage=dvae"):
        runs.find(tmp_path, "dvae", str(prior))


def test_checkpoint_falls_back_to_the_other_kind(tmp_path):
    both, best, last = (
        trained(tmp_path, str(number), kinds=kinds)
        for number, kinds in enumerate([("best", "last"), ("best",), ("last",)])
    )
    assert runs.checkpoint(both).name == "best.ckpt"
    assert runs.checkpoint(both, "last").name == "last.ckpt"
    assert runs.checkpoint(best, "last").name == "best.ckpt"
    assert runs.checkpoint(last).name == "last.ckpt"


@pytest.mark.parametrize(
    "changes",
    [
        {"callbacks": {"best": None}},
        {"callbacks": {"last": {}}},
        {"callbacks": {"best": {}}, "trainer": {"limit_val_batches": 0}},
    ],
)
def test_a_run_that_no_longer_selects_its_best_weights_has_its_last_ones(tmp_path, changes):
    run = trained(tmp_path, "a")
    newer = {"state_dict": weights(), "global_step": 5}
    AtomicCheckpointIO().save_checkpoint(newer, run / "checkpoints" / "last.ckpt")
    runs.create(run, config(callbacks={"best": {}}))
    assert runs.trained_steps(run) == 3
    runs.create(run, config(**changes))
    assert runs.checkpoint(run).name == "last.ckpt"
    assert runs.trained_steps(run) == 5
    loaded = runs.load_network(run).weight
    assert torch.equal(loaded, newer["state_dict"]["network.weight"])
    (run / "checkpoints" / "last.ckpt").unlink()
    assert runs.checkpoint(run).name == "best.ckpt"


def test_newest_run_of_an_image_size(tmp_path):
    small, large = trained(tmp_path, "small", at=100), trained(tmp_path, "large", at=200)
    for run, size in ((small, 16), (large, 32)):
        saved = runs.load_config(run)
        saved.model.network.image_size = size
        runs.create(run, saved)
    data = runs.TrainingData("shapes")
    assert runs.find(tmp_path, "dvae", data=data, image_size=16) == small.resolve()
    assert runs.find(tmp_path, "dvae", data=data, image_size=32) == large.resolve()
    with pytest.raises(UserError) as caught:
        runs.find(tmp_path, "dvae", data=data, image_size=64)
    assert f"({large} was trained on data.image_size=32): train one first" in message(caught)
    assert message(caught).endswith(
        "stage=dvae data=shapes data.image_size=64`, set data.image_size=32, or give its path"
    )


def test_loaded_network_is_frozen(tmp_path):
    run = trained(tmp_path, "a")
    network = runs.load_network(run)
    saved = torch.load(run / "checkpoints" / "best.ckpt")["state_dict"]
    assert torch.equal(network.weight, saved["network.weight"])
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_missing_checkpoint_is_one_line(tmp_path):
    runs.create(tmp_path / "a", config())
    with pytest.raises(UserError, match="no checkpoint") as caught:
        runs.load_network(tmp_path / "a")
    message(caught)


def test_broken_checkpoint_is_one_line(tmp_path):
    run = trained(tmp_path, "a")
    file = run / "checkpoints" / "best.ckpt"
    whole = file.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"no checkpoint at all"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"best\.ckpt cannot be read") as caught:
            runs.load_network(run)
        message(caught)


def test_checkpoint_that_runs_code_is_refused(tmp_path):
    run = trained(tmp_path, "a")
    torch.save({"state_dict": weights(), "hook": os.system}, run / "checkpoints" / "best.ckpt")
    with pytest.raises(UserError, match="cannot be read") as caught:
        runs.load_network(run)
    message(caught)


@pytest.mark.parametrize("state", [{}, weights(5), {**weights(), "network.more": torch.ones(1)}])
def test_checkpoint_of_another_network_is_one_line(tmp_path, state):
    run = trained(tmp_path, "a")
    torch.save({"state_dict": state}, run / "checkpoints" / "best.ckpt")
    with pytest.raises(UserError, match="do not fit the network") as caught:
        runs.load_network(run)
    message(caught)


def test_copied_dvae_is_a_model_without_training_state(tmp_path):
    dvae, prior = trained(tmp_path, "a"), trained(tmp_path, "p", stage="prior")
    runs.copy_dvae(prior, dvae)
    copy = runs.load_network(prior / runs.DVAE)
    assert torch.equal(copy.weight, runs.load_network(dvae).weight)
    files = {path.name for path in (prior / runs.DVAE).iterdir()}
    assert files == {"config.json", "model.safetensors"}
    assert runs.trained_steps(prior / runs.DVAE) == 3


def test_broken_weights_are_one_line(tmp_path):
    dvae, prior = trained(tmp_path, "a"), trained(tmp_path, "p", stage="prior")
    runs.copy_dvae(prior, dvae)
    (prior / runs.DVAE / runs.WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"model\.safetensors is not a complete") as caught:
        runs.load_network(prior / runs.DVAE)
    message(caught)


def test_model_is_found_by_its_path(tmp_path):
    dvae, prior = trained(tmp_path, "a"), trained(tmp_path, "p", stage="prior")
    runs.copy_dvae(prior, dvae)
    assert runs.find(tmp_path, "dvae", str(prior / runs.DVAE)) == (prior / runs.DVAE).resolve()


def test_relocated_configuration_points_into_the_copy(tmp_path):
    saved = OmegaConf.create(
        {
            "run": "logs/prior/a",
            "dvae": "logs/dvae/d",
            "callbacks": [{"dirpath": "logs/prior/a/checkpoints"}, {"dirpath": "logs/prior/ab"}],
            "data": {"run": "logs/dvae/d", "side": 3, "none": None},
        }
    )
    config = runs.relocate(saved, tmp_path)
    assert config.run == str(tmp_path)
    assert config.dvae == config.data.run == str(tmp_path / "dvae")
    assert config.callbacks[0].dirpath == str(tmp_path / "checkpoints")
    assert config.callbacks[1].dirpath == "logs/prior/ab"
    assert (config.data.side, config.data.none) == (3, None)


def test_finished_run_is_refused(tmp_path):
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    file.parent.mkdir(parents=True)
    torch.save({"global_step": 6}, file)
    runs.check_unfinished(file, 7)
    runs.check_unfinished(file, -1)
    with pytest.raises(UserError) as caught:
        runs.check_unfinished(file, 6)
    assert "has made all its 6 updates" in message(caught)


def test_truncated_checkpoint_offers_another_one(tmp_path):
    trained(tmp_path, "a")
    last, best = (tmp_path / "dvae" / "a" / "checkpoints" / f"{n}.ckpt" for n in ("last", "best"))
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(UserError) as caught:
        runs.check_unfinished(last, 7)
    assert "truncated" in message(caught)
    assert f"resume={best}" in message(caught)
    best.unlink()
    with pytest.raises(UserError) as caught:
        runs.check_unfinished(last, 7)
    assert "resume=" not in message(caught)


def test_run_is_resumed_from_its_last_checkpoint_or_a_named_one(tmp_path):
    trained(tmp_path, "a")
    run = tmp_path / "dvae" / "a"
    last, best = (run / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    assert runs.find_resumable(tmp_path, "dvae") == (run, last)
    assert runs.find_resumable(tmp_path, "dvae", str(run)) == (run, last)
    assert runs.find_resumable(tmp_path, "dvae", str(best)) == (run, best)
    latest = tmp_path / "dvae" / "latest" / "checkpoints" / "best.ckpt"
    assert runs.find_resumable(tmp_path, "dvae", str(latest)) == (run, best)
    with pytest.raises(UserError, match=r"no checkpoint .*other\.ckpt"):
        runs.find_resumable(tmp_path, "dvae", str(run / "checkpoints" / "other.ckpt"))


@pytest.mark.parametrize("file", ["config.yaml", "config.json"])
def test_run_of_version_0_1_is_refused_in_one_line(tmp_path, file):
    target = "tilewright.prior.transformer.Transformer"
    saved = {"stage": "prior", "model": {"network": {"_target_": target}}}
    (tmp_path / file).write_text(json.dumps(saved))  # JSON is YAML, too
    with pytest.raises(UserError) as caught:
        runs.load_network(tmp_path)
    assert message(caught) == (
        f"{tmp_path / file} was saved by Tilewright 0.1, whose runs this version does not read: "
        "train it again"
    )


def test_run_of_a_later_format_is_refused(tmp_path):
    OmegaConf.save({"stage": "dvae", "format": 99}, tmp_path / "config.yaml")
    with pytest.raises(UserError, match="has format 99, and this version reads format 2"):
        runs.load_config(tmp_path)


@pytest.mark.parametrize("place", ["run", "run/.lock"])
def test_a_folder_that_cannot_be_locked_is_an_error(tmp_path, place):
    if place == "run":
        (tmp_path / "run").write_text("a file in its place")
    else:
        (tmp_path / place).mkdir(parents=True)
    message = r"run cannot be written or locked \(.+\): choose"
    with pytest.raises(UserError, match=message), runs.lock(tmp_path / "run"):
        pass


def train_with_a_worker(run, ready):
    """Locks a run, and forks a process that outlives this one, as a dataloader worker may."""
    with runs.lock(run):
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
        ready.put(worker.pid)
        time.sleep(60)


def test_the_lock_of_a_killed_training_is_free(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.SimpleQueue()
    training = context.Process(target=train_with_a_worker, args=(tmp_path / "run", ready))
    training.start()
    worker = ready.get()
    with pytest.raises(UserError, match="another process is training"), runs.lock(tmp_path / "run"):
        pass
    training.kill()
    training.join()
    try:
        with runs.lock(tmp_path / "run"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("name", ["config.yaml", "config.json"])
def test_nothing_in_a_folder_is_interpolated(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TOKEN", "secret")
    for value in ("${oc.env:TOKEN}", "a/${oc.env:TOKEN}/b", "${broken", ["x", {"y": "${stage}"}]):
        content = {"stage": "dvae", "format": 2, "choices": {"data": value}}
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(UserError) as caught:
            runs.load_config(tmp_path)
        assert name in message(caught)
        assert "secret" not in message(caught)
    (tmp_path / name).write_text(json.dumps({**content, "choices": {"data": r"\${stage}"}}))
    assert runs.load_config(tmp_path).choices.data == "${stage}"


def test_aliases_cannot_fill_the_memory(tmp_path):
    bomb = "stage: dvae\nformat: 2\na: &a [1, 1]\n" + "".join(
        f"{name}: &{name} [*{last}, *{last}]\n"
        for last, name in pairwise("abcdefghijklmnopqrstuvwx")
    )
    for name, word in (("config.json", "cannot be read"), ("config.yaml", "YAML alias")):
        (tmp_path / name).write_text(bomb)
        began = time.monotonic()
        with pytest.raises(UserError, match=word) as caught:
            runs.load_config(tmp_path)
        message(caught)
        assert time.monotonic() - began < 1


@pytest.mark.parametrize("content", ["[1]", '"stage: dvae"', "null", "3", "[" * 100_000])
def test_json_that_is_not_an_object_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json") as caught:
        runs.load_config(tmp_path)
    message(caught)


@pytest.mark.parametrize(
    "link",
    [
        "config.yaml",
        "tokenizer.json",
        "dvae",
        "samples",
        "eval",
        "eval/fid",
        "eval/fid/results.json",
    ],
)
def test_symbolic_links_in_a_run_are_refused(tmp_path, link):
    run, outside = trained(tmp_path, "a"), tmp_path / "outside"
    outside.mkdir()
    path = run / link
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(outside)
    (run / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"{link} is a symbolic link") as caught:
        runs.find(tmp_path, "dvae", str(run))
    message(caught)


def test_checkpoints_and_the_folder_itself_may_be_links(tmp_path):
    run = trained(tmp_path, "a")
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    (run / "checkpoints").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "b").symlink_to(run)
    runs.load_network(tmp_path / "b")


def test_links_in_the_cache_of_the_hub_are_followed(tmp_path):
    run = trained(tmp_path, "a")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    runs.copy_dvae(snapshot, run)
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir()
    for folder in (snapshot, snapshot / runs.DVAE):
        for file in folder.glob("*.*"):
            file.rename(blobs / file.name)
            file.symlink_to(blobs / file.name)
    runs.load_network(snapshot / runs.DVAE)
    blobs.rename(tmp_path / "private")
    blobs.symlink_to(tmp_path / "private")
    with pytest.raises(UserError, match="symbolic link"):
        runs.load_network(snapshot / runs.DVAE)


def test_a_network_that_is_far_larger_than_its_weights_is_not_built(tmp_path):
    run = trained(tmp_path, "a")
    text = (run / "config.yaml").read_text()
    for size, words in ((10**7, "do not fit the network"), (10**13, "model.network")):
        (run / "config.yaml").write_text(text.replace("in_features: 3", f"in_features: {size}"))
        with pytest.raises(UserError, match=words) as caught:
            runs.load_network(run)
        message(caught)
