"""Frozen text encoders: features of transformers, their layout, and encoders that do not fit."""

import json
import pickle
import shutil

import pytest
import torch

from helpers.pretrained import save_bert, save_clip, save_t5
from tilewright.data import CaptionEncoder
from tilewright.errors import UserError

CAPTIONS = ["a red circle", "A blue ring on the left of two large stars and more", "", "a"]
SAVERS = {"T5EncoderModel": save_t5, "CLIPTextModel": save_clip, "BertModel": save_bert}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save(tmp_path_factory.mktemp(name)) for name, save in SAVERS.items()}


@pytest.fixture
def t5(folders):
    return folders["T5EncoderModel"]


def make(folder, length=12, **settings):
    return CaptionEncoder(str(folder), length, **{"dtype": "float32", **settings})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", SAVERS)
def test_features_are_the_last_hidden_states_of_transformers(folders, name, side, dtype):
    import transformers

    folder = folders[name]
    kind = getattr(transformers, name)
    reference = kind.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    inputs = transformers.AutoTokenizer.from_pretrained(folder)(
        CAPTIONS, padding=True, truncation=True, max_length=12, return_tensors="pt"
    )
    with torch.no_grad():
        expected = reference(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask
        ).last_hidden_state
    encoder = make(folder, padding_side=side, dtype=dtype)
    features = encoder.encode(CAPTIONS)
    assert features.shape == (4, 12, 17)
    assert features.dtype == torch.float32
    assert encoder.truncated == 1
    for row, states, mask in zip(features, expected, inputs.attention_mask, strict=True):
        count = int(mask.sum())
        row = row if side == "right" else row.roll(count, dims=0)
        assert row[:, -1].tolist() == [1] * count + [0] * (12 - count)
        assert (row[count:] == 0).all()
        tolerance = 1e-5 if dtype == "float32" else 0.02
        torch.testing.assert_close(
            row[:count, :-1], states[:count].float(), atol=tolerance, rtol=tolerance
        )


def test_only_the_encoder_is_loaded(folders):
    for name, other_part in {"T5EncoderModel": "decoder", "CLIPTextModel": "vision"}.items():
        modules = make(folders[name])._load().named_modules()
        assert not any(other_part in module for module, _ in modules)


def test_the_encoder_is_frozen_and_loaded_once(t5):
    encoder = make(t5)
    assert encoder._network is None
    first = encoder.encode(CAPTIONS)
    network = encoder._network
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(encoder.encode(CAPTIONS), first)  # no dropout
    assert encoder._network is network


def test_a_caption_without_any_token_has_no_features(t5):
    encoder = make(t5)
    features = encoder.encode_tokens(torch.full((1, 12), -1))
    assert (features == 0).all()


def test_a_saved_tokenizer_and_the_path_restore_an_encoder(t5, tmp_path):
    encoder = make(t5)
    encoder.save(tmp_path / "tokenizer.json")
    loaded = make(t5, width=encoder.width, digest=encoder.digest)
    loaded.load(tmp_path / "tokenizer.json")
    assert loaded.identity == encoder.identity
    assert torch.equal(loaded.encode(CAPTIONS), encoder.encode(CAPTIONS))
    assert loaded.split_at_length("a red circle") == ("a red circle", "")


def test_the_digest_depends_on_the_weights_alone(folders, tmp_path):
    # The pooler of this BERT is random in each load.
    bert = folders["BertModel"]
    assert make(bert).digest == make(bert).digest
    copied = shutil.copytree(folders["T5EncoderModel"], tmp_path / "copy")
    assert make(copied).digest == make(folders["T5EncoderModel"]).digest


def test_cleaning_and_length_change_the_identity(t5):
    identities = {
        make(t5).identity,
        make(t5, length=13).identity,
        make(t5, cleaning="llamagen").identity,
        make(t5, dtype="bfloat16").identity,
    }
    assert len(identities) == 4


def test_other_weights_than_those_of_the_training_are_refused(t5, tmp_path):
    digest = make(t5).digest
    other = save_t5(tmp_path, seed=1)
    with pytest.raises(UserError, match=r"has other weights .*: set caption\.path") as error:
        make(other, digest=digest).encode(["a"])
    assert "\n" not in str(error.value)


def test_another_width_than_that_of_the_training_is_refused(t5):
    with pytest.raises(UserError, match="has features of width 16, and the prior reads 32"):
        make(t5, width=32).encode(["a"])


def test_more_positions_than_the_encoder_has_are_refused(folders):
    with pytest.raises(UserError, match=r"caption\.length=30 is more than the 20 positions"):
        make(folders["CLIPTextModel"], length=30).encode(["a"])


def test_a_missing_encoder_of_a_run_is_one_line_with_the_way_out(t5, tmp_path):
    make(t5).save(tmp_path / "tokenizer.json")
    encoder = make(tmp_path / "gone", width=16)
    encoder.load(tmp_path / "tokenizer.json")
    with pytest.raises(UserError) as error:
        encoder.encode(["a"])
    assert str(error.value) == (
        f"there is no folder {tmp_path / 'gone'} of a text encoder: download it, or name its "
        "folder, by caption=encoder caption.path=… to train, and by tokenizer.path in the "
        f"configuration of {tmp_path} to generate"
    )


def test_pickled_weights_and_foreign_code_are_not_loaded(t5, tmp_path):
    folder = shutil.copytree(t5, tmp_path / "t5")
    (folder / "model.safetensors").unlink()
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return open, (str(ran), "w")

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError, match="is not a text encoder that can be loaded"):
        make(folder).encode(["a"])
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(ran)!r}, 'w')")
    with pytest.raises(UserError, match="is not a text encoder that can be loaded"):
        make(folder).width  # noqa: B018
    assert not ran.exists()


def test_missing_vocabulary_is_one_line(t5, tmp_path):
    folder = shutil.copytree(t5, tmp_path / "t5")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(
        UserError, match=r"has no vocabulary of a tokenizer: add its tokenizer.json"
    ):
        make(folder).encode(["a"])
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError) as error:
        make(folder).encode(["a"])
    assert "\n" not in str(error.value)


def test_missing_weights_are_one_line(t5, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(t5, tmp_path / "t5")
    weights = load_file(folder / "model.safetensors")
    name = "encoder.block.1.layer.0.SelfAttention.q.weight"
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"is not complete: {name} is missing"):
        make(folder).encode(["a"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "caption.length=0 is not possible"),
        ({"padding_side": "top"}, "caption.padding_side=top is not possible: set left or right"),
        ({"dtype": "int8"}, "caption.dtype=int8 is not possible"),
        ({"cleaning": "clip"}, "cleaning=clip is not possible"),
    ],
)
def test_an_impossible_setting_is_one_line(settings, message):
    with pytest.raises(UserError, match=message):
        make("unused", **settings)
