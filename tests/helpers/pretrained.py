"""Tiny random tokenizers and text encoders in the formats of transformers."""

import json

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CAPTIONS = ["a red circle", "a blue ring", "two large stars", "a small gold square on the left"] * 5


def unigram():
    """Returns a tokenizer like that of T5: an end token, and padding with token 0."""
    words = ["▁a", "▁red", "▁blue", "▁gold", "▁circle", "▁ring", "▁star", "▁on", "▁the", "▁left"]
    pieces = [*((word, -3.0) for word in words), *((c, -6.0) for c in "▁abcdefghilnoqrstuwy")]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = tokenizers.Tokenizer(models.Unigram([*special, *pieces], unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([name for name, _ in special])
    end = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", end)]
    )
    return tokenizer


def word_piece():
    """Returns a tokenizer like that of BERT: lower case, [CLS] and [SEP], and [UNK]."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=80, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def save_t5(folder, dim=16, seed=0):
    """Writes a whole T5 with its tokenizer to a folder, and returns the folder."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=128, d_model=dim, d_kv=4, d_ff=32, num_layers=2, num_heads=4, dropout_rate=0.1
    )
    return _save(T5ForConditionalGeneration(config), unigram(), folder)


def save_clip(folder):
    """Writes a whole CLIP of 20 text positions with a tokenizer, and returns the folder."""
    from transformers import CLIPConfig, CLIPModel

    width = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    text = {
        **width,
        "vocab_size": 100,
        "num_hidden_layers": 2,
        "max_position_embeddings": 20,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    vision = {**width, "num_hidden_layers": 1, "image_size": 8, "patch_size": 4}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return _save(model, unigram(), folder)


def save_bert(folder):
    """Writes a BERT without a pooler, with its tokenizer, and returns the folder."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=100,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=20,
    )
    return _save(BertForMaskedLM(config), word_piece(), folder)


def _save(model, tokenizer, folder):
    for parameter in model.parameters():  # so that every layer changes the features
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
