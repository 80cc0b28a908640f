"""Configuration keys that cannot change once a run has weights or has begun its training."""

# Keys that the shapes of the weights or the meaning of the tokens depend on.
FIXED_BY_WEIGHTS = (
    "model.network.",
    "likelihood.maps",
    "tokenizer.",
    "caption.",
    "image_tokens.",
    "data.image_size",
    "data.image_tokenizer.",
)
# Keys that select the data and its order, or the state that the optimizer saves.
FIXED_BY_TRAINING = (
    "model._target_",
    "model.muon",
    "model.adam_bits",
    "likelihood.",
    "loss.perceptual.network",
    "loss.adversarial.discriminator.",
    "lora.",
    "seed",
    "data._target_",
    "data.seed",
    "data.source.",
    "data.filters.",
    "data.max_pixels",
    "data.require_captions",
    "data.overfit_batches",
)
# Keys that training fills in, with the way to set each of them on the command line.
FILLED_IN = {
    "run": "name a new run with run_name=NAME, or continue one with resume=PATH",
    "image_tokens": "choose a dVAE with dvae=PATH",
    "choices": "choose an option with GROUP=OPTION",
    "overrides": "set the keys themselves",
    "base": "name the source of the weights with init=PATH",
}
# Keys that a new run may set. Training fills them in otherwise.
CHOSEN_ONCE = ("run_name", "dvae")
# Exceptions: neither the weights nor the data depend on them.
CHANGEABLE = (
    "tokenizer.dropout",
    "tokenizer.path",  # a text encoder may move; a tokenizer is saved with the run
    "caption.path",
    "model.network.checkpointing",
    "lora.dropout",
    "data.source.path",  # a folder may move
    "data.source.root",
    "data.source.name",  # likewise, and a dataset of the Hub may be a copy on this machine
)


def is_fixed_by_weights(key: str) -> bool:
    """Returns True if weights that were trained with one value of a key need this value."""
    return key.startswith(FIXED_BY_WEIGHTS) and key not in CHANGEABLE


def is_fixed_by_training(key: str) -> bool:
    """Returns True if a training cannot continue with another value of a key."""
    return key.startswith(FIXED_BY_TRAINING) and key not in CHANGEABLE


def follows_weights(key: str) -> bool:
    """Returns True for a key whose value comes with the weights, even if it may change."""
    return key.startswith(FIXED_BY_WEIGHTS)
