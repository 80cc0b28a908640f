"""Reading weights that other projects wrote, and every way in which their files can be wrong."""

import argparse
import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from tilewright import weight_files
from tilewright.errors import UserError

WEIGHTS = {"encoder.weight": torch.arange(6.0).view(2, 3), "decoder.bias": torch.ones(4)}


class Attack:
    """Object whose unpickling writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def assert_equal(tensors, expected):
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)


def refusal(*arguments, **options):
    """Returns the message of a file that is refused, which is one line."""
    with pytest.raises(UserError) as caught:
        weight_files.read_tensors(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_shards(folder, stem="model"):
    """Writes each tensor to a shard of its own, with their index."""
    places = {key: f"{stem}-{i}.safetensors" for i, key in enumerate(WEIGHTS)}
    for key, name in places.items():
        save_file({key: WEIGHTS[key]}, folder / name)
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    return index


@pytest.mark.parametrize("name", ["model.safetensors", "diffusion_pytorch_model.safetensors"])
def test_safetensors_are_read_from_a_file_or_its_folder(tmp_path, name):
    save_file(WEIGHTS, tmp_path / name)
    assert_equal(weight_files.read_tensors(tmp_path / name), WEIGHTS)
    assert_equal(weight_files.read_tensors(tmp_path), WEIGHTS)


def test_a_prefix_reads_only_the_shards_that_hold_it(tmp_path):
    write_shards(tmp_path)
    assert_equal(weight_files.read_tensors(tmp_path), WEIGHTS)
    (tmp_path / "model-1.safetensors").unlink()
    encoder = weight_files.read_tensors(tmp_path, prefix="encoder.")
    assert_equal(encoder, {"weight": WEIGHTS["encoder.weight"]})
    assert "model-1.safetensors is not a complete" in refusal(tmp_path, prefix="decoder.")


@pytest.mark.parametrize("entry", [None, "state_dict", "model", "module", "ema"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_holds_its_state_dict_in_a_known_entry(tmp_path, entry, legacy):
    path = tmp_path / "last.ckpt"
    content = {**WEIGHTS, "step": 3} if entry is None else {entry: WEIGHTS, "optimizer": {}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert_equal(weight_files.read_tensors(path, trust=True), WEIGHTS)
    assert "set trust=true if you trust its source" in refusal(path)


def test_a_pickle_with_objects_of_other_packages_gives_its_tensors(tmp_path):
    path = tmp_path / "last.ckpt"
    settings = argparse.Namespace(rate=0.1)
    extras = {"hyper_parameters": settings, "callbacks": {argparse.Namespace: [settings, {1, 2}]}}
    torch.save({"state_dict": WEIGHTS, **extras}, path)
    assert_equal(weight_files.read_tensors(path, trust=True), WEIGHTS)


@pytest.mark.parametrize("end", [".ckpt", ".pt"])
def test_a_page_in_place_of_a_checkpoint_is_refused_without_advice_to_run_its_code(tmp_path, end):
    path = tmp_path / f"last{end}"
    path.write_text("<html>404</html>")
    line = refusal(path, trust=True)
    assert line.endswith("(Weights only load failed): download it again")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_trusted_pickle_cannot_run_code(tmp_path, legacy):
    path = tmp_path / "model.pt"
    content = {"model": WEIGHTS, "attack": Attack(tmp_path / "attacked")}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    if legacy:
        assert "is not a complete checkpoint" in refusal(path, trust=True)
    else:
        assert_equal(weight_files.read_tensors(path, trust=True), WEIGHTS)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Attack(tmp_path / "attacked")))
    assert "is not a complete checkpoint" in refusal(tmp_path / "plain.pkl", trust=True)
    assert not (tmp_path / "attacked").exists()


def test_a_pickle_that_is_only_an_attack_has_no_tensors(tmp_path):
    torch.save(Attack(tmp_path / "attacked"), tmp_path / "model.pt")
    assert "has no tensors" in refusal(tmp_path / "model.pt", trust=True)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_a_truncated_file_and_a_file_of_another_kind_are_refused(tmp_path, name):
    path = tmp_path / name
    assert "does not exist" in refusal(path)
    save_file(WEIGHTS, path) if name.endswith("tensors") else torch.save(WEIGHTS, path)
    data = path.read_bytes()
    for content in (data[: len(data) // 2], b"", b"hello", b"<html>not found</html>"):
        path.write_bytes(content)
        assert f"{path} is not a complete" in refusal(path, trust=True)


def test_a_header_that_promises_more_than_the_file_is_refused(tmp_path):
    header = {"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    text = json.dumps(header).encode()
    for length in (len(text), 1 << 60):
        path = tmp_path / "model.safetensors"
        path.write_bytes(struct.pack("<Q", length) + text)
        assert "is not a complete safetensors file" in refusal(path)


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path):
    torch.save({"x": torch.zeros(1 << 18)}, tmp_path / "model.pt")
    bomb = tmp_path / "bomb.pt"
    with (
        zipfile.ZipFile(tmp_path / "model.pt") as archive,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in archive.infolist():
            packed.writestr(entry.filename, archive.read(entry))
    assert "which PyTorch never writes" in refusal(bomb, trust=True)


def test_links_and_paths_in_a_strangers_folder_are_refused(tmp_path):
    secret = tmp_path / "secret.safetensors"
    save_file(WEIGHTS, secret)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(secret)
    assert "is a symbolic link" in refusal(folder)
    (folder / "model.safetensors").unlink()
    index = write_shards(folder)
    (folder / "model-0.safetensors").unlink()
    (folder / "model-0.safetensors").symlink_to(secret)
    assert "is a symbolic link" in refusal(folder)
    for name in ("../secret.safetensors", str(secret), "secret.pt"):
        index.write_text(json.dumps({"weight_map": {"x": name}}))
        assert f"names the shard {name!r}" in refusal(folder)


def test_a_broken_index_is_refused(tmp_path):
    index = write_shards(tmp_path)
    for content in ("", "[" * 100_000, "[]", "{}", '{"weight_map": {"x": 3}}'):
        index.write_text(content)
        assert str(index) in refusal(index)
    index.write_text(json.dumps({"weight_map": {"x": "model-0.safetensors"}}))
    assert "has no tensor x" in refusal(index)


def test_other_files_and_folders_are_refused(tmp_path):
    (tmp_path / "model.onnx").write_text("")
    assert "is not a file of weights" in refusal(tmp_path / "model.onnx")
    assert "has no model.safetensors or diffusion_pytorch_model.safetensors" in refusal(tmp_path)
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert "has no tensors that begin with vq." in refusal(tmp_path, prefix="vq.")


def test_tensors_are_taken_by_name_and_shape():
    tensors = weight_files.Tensors({**WEIGHTS, "loss.x": torch.ones(1)}, "file.pt")
    assert torch.equal(tensors.take("decoder.bias", [4]), WEIGHTS["decoder.bias"])
    for key, shape, message in (
        ("decoder.bias", [4], r"file.pt has no tensor decoder.bias, but for example encoder.wei"),
        ("encoder.weight", [3, 2], r"of shape \[2, 3\] instead of \[3, 2\]"),
    ):
        with pytest.raises(UserError, match=message):
            tensors.take(key, shape)
    with pytest.raises(UserError, match=r"1 tensors without a place.* such as encoder\.weight"):
        tensors.check_empty(ignored=["loss."])
    tensors.take("encoder.weight", [2, 3])
    tensors.check_empty(ignored=["loss."])
    with pytest.raises(UserError, match=r"such as loss\.x"):
        tensors.check_empty()
