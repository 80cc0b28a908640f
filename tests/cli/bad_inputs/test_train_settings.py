"""Settings of a training that are not possible: one line, and nothing is written."""

import shutil

import pytest

from helpers.bad_inputs import DVAE, PRIOR, assert_refused, change_config, write_images
from helpers.command import SMALL

# name: (arguments, a function that makes the input bad, parts of the message)
CASES = {
    "no stage": ([], None, ["stage= is missing"]),
    "unknown stage": (["stage=nope"], None, ["stage/nope", "dvae"]),
    "unknown data": ([*DVAE, "data=nope"], None, ["data/nope", "webdataset"]),
    "unknown model": ([*DVAE, "model=nope"], None, ["model/nope", "dvae_small"]),
    "unknown filter": ([*DVAE, "filter=nope"], None, ["filter/nope", "paper"]),
    "group of another stage": (
        [*PRIOR, "loss=perceptual"],
        None,
        ["error: loss= is for stage=dvae: leave it out"],
    ),
    "unknown network of a perceptual loss": (
        [*DVAE, "loss=perceptual", "loss.perceptual.network=vgg"],
        None,
        ["error: loss.perceptual.network=vgg is not possible", "efficientnet_lite0"],
    ),
    "negative weight of a discriminator": (
        [*DVAE, "loss=adversarial", "loss.adversarial.weight=-1"],
        None,
        ["error: loss.adversarial.weight=-1"],
    ),
    **{
        f"loss={loss} of a model without a key for it": (
            [*DVAE, f"loss={loss}", f"~model.{loss}"],
            None,
            [
                f"error: loss={loss} has no effect on model=dvae_small",
                f"has no key {loss}: leave it out, or add {loss}: ${{{{loss.{loss}}}}} to",
            ],
        )
        for loss in ("perceptual", "adversarial")
    },
    "start of a discriminator after the end": (
        [*DVAE, "loss=adversarial", "loss.adversarial.start=9", "trainer.max_steps=9"],
        None,
        ["error: loss.adversarial.start=9 is not before trainer.max_steps=9", "lower it"],
    ),
    "start of a discriminator after the end of a resumed run": (
        [*DVAE, "resume=true", "trainer.max_steps=9"],
        lambda home: change_config(home.dvae / "config.yaml", model__adversarial={"start": 9}),
        ["error: loss.adversarial.start=9 is not before trainer.max_steps=9"],
    ),
    "unknown key": ([*DVAE, "trainer.nope=3"], None, ["trainer.nope"]),
    "key without a value": ([*DVAE, "trainer.max_steps"], None, ["trainer.max_steps"]),
    "mandatory key": ([*DVAE, "data=folder"], None, ["data.source.path"]),
    "word instead of a number": ([*DVAE, "data.batch_size=many"], None, ["data", "many"]),
    "word as a seed": ([*DVAE, "seed=x"], None, ["seed=x is not a whole number"]),
    "negative seed": ([*DVAE, "seed=-1"], None, ["seed=-1 is not possible"]),
    "fraction as a seed": ([*DVAE, "seed=1.5"], None, ["seed=1.5 is not a whole number"]),
    "no seed": ([*DVAE, "seed=null"], None, ["seed=null is not a whole number"]),
    "no interval of validations": (
        [*DVAE, "trainer.val_check_interval=0"],
        None,
        ["trainer.val_check_interval=0"],
    ),
    "null as an option": ([*DVAE, "logger=null"], None, ["null is not an option", "none"]),
    "missing GPU": (["stage=dvae", "trainer.accelerator=gpu"], None, ["set trainer=cpu"]),
    "empty number of updates": (
        [*DVAE, "trainer.max_steps="],
        None,
        ["trainer.max_steps= is not possible"],
    ),
    "word as a flag": (
        [*DVAE, "callbacks.health.stop=maybe"],
        None,
        ["callbacks.health.stop=maybe"],
    ),
    "unknown feature network": (
        [*DVAE, "callbacks.frechet.extractor=resnet"],
        None,
        ["error: callbacks.frechet.extractor=resnet is not possible: set one of auto"],
    ),
    "decay above 1": (
        [*DVAE, "callbacks.ema.decay=2"],
        None,
        ["error: callbacks.ema.decay=2 is not possible"],
    ),
    "no images shown": (
        [*DVAE, "callbacks.reconstructions.count=0"],
        None,
        ["callbacks.reconstructions.count=0"],
    ),
    "width 0": (
        [*DVAE, *SMALL[1:4], "model.network.n_hid=0"],
        None,
        ["model.network.n_hid=0 is not possible"],
    ),
    "deviation 0": (
        [*DVAE, *SMALL[1:4], "likelihood.sigma=0"],
        None,
        ["likelihood.sigma=0 is not possible"],
    ),
    **{
        f"{argument} of a {stage}": (
            [f"stage={stage}", *SMALL[:4], argument],
            None,
            [f"error: {argument} is not possible"],
        )
        for stage, argument in [
            ("prior", "model.network.dim=0"),
            ("prior", "model.network.heads=0"),
            ("prior", "model.network.depth=0"),
            ("prior", "tokenizer.length=0"),
            ("prior", "tokenizer.vocab_size=0"),
            ("ranker", "tokenizer.dropout=2"),
            ("ranker", "model.network.embedding=0"),
            ("dvae", "recoloring.p=2"),
            ("dvae", "model.beta.start=-1"),
            ("dvae", "model.beta.end=nan"),
            ("dvae", "model.temperature.then.end=0"),
        ]
    },
    "epochs": ([*DVAE, "trainer.max_epochs=1"], None, ["set trainer.max_steps"]),
    "key of Lightning": ([*DVAE, "trainer.fast_dev_run=true"], None, ["debug=default"]),
    "unknown key that is added": ([*DVAE, "+foo=3"], None, ["foo is not a key"]),
    "list of options": (["stage=[dvae]"], None, ["stage=[dvae] is a list: name one"]),
    "model of another stage": (
        [*DVAE, "model=prior_small"],
        None,
        ["model=prior_small is a model of stage=prior", "dvae_small"],
    ),
    "word as a flag of the data": (
        [*DVAE, "data.augmented_tokens=maybe"],
        None,
        ["data.augmented_tokens=maybe is not possible: set true or false"],
    ),
    "number as a schedule": (
        [*DVAE, "model.learning_rate=1"],
        None,
        ["model.learning_rate=1 does not fit", "set one, model.learning_rate."],
    ),
    "negative learning rate": (
        [*DVAE, "model.learning_rate.then.start=-1"],
        None,
        ["start=-1 is not possible: set a number of 0 or more"],
    ),
    "negative warm-up": (
        [*DVAE, "model.learning_rate.steps=-1"],
        None,
        ["steps=-1 is not possible: set a whole number of 0 or more"],
    ),
    "batch size 0": ([*DVAE, "data.batch_size=0"], None, ["data.batch_size=0"]),
    "negative workers": ([*DVAE, "data.num_workers=-1"], None, ["num_workers=-1"]),
    "negative crops": ([*DVAE, "data.crops_per_image=-1"], None, ["crops_per_image=-1"]),
    "two kinds of crops": (
        [*DVAE, "data.crops_per_image=2", "data.augmented_tokens=true"],
        None,
        ["data.crops_per_image", "augmented_tokens"],
    ),
    "empty split": ([*DVAE, "data.source.train=0"], None, ["data.source.train=0"]),
    "resume with another model": (
        [*DVAE, "resume=true", "model=dvae_paper"],
        None,
        ["model=dvae_small"],
    ),
    "missing class": ([*DVAE, "data.source._target_=a.b"], None, ["source"]),
    "run to train": ([*DVAE, "run=logs/x"], None, ["run= is filled in", "run_name=NAME"]),
    "image tokens to train on": (
        ["stage=prior", "image_tokens.grid=8"],
        None,
        ["image_tokens.grid= is filled in by training", "dvae=PATH"],
    ),
    "home folder of nobody": (
        [*DVAE, "paths.logs=~no_such_user/logs"],
        None,
        ["paths.logs=~no_such_user/logs begins with ~ and names no user"],
    ),
    "address of a bucket": (
        [*DVAE, "paths.logs=s3://bucket/logs"],
        None,
        ["paths.logs=s3://bucket/logs is an address"],
    ),
    "sweep of several processes": (
        [*DVAE, "trainer.devices=2", "seed=0,1", "-m"],
        None,
        ["a sweep trains each run in one process", "trainer.devices"],
    ),
    "name that is too long": (
        [*DVAE, f"run_name={'x' * 300}", *SMALL],
        None,
        ["File name too long"],
    ),
    "run name that exists": ([*DVAE, "run_name=first"], None, ["exists", "resume="]),
    "run name of a model": (
        [*DVAE, "run_name=shared"],
        lambda h: shutil.copytree(h.prior / "dvae", h.logs / "dvae" / "shared"),
        ["logs/dvae/shared is a model: choose another run_name"],
    ),
    "empty run name": ([*DVAE, "run_name="], None, ["run_name= is empty"]),
    "empty run to resume": ([*DVAE, "resume="], None, ["resume= is empty"]),
    "empty run to start from": ([*DVAE, "init="], None, ["init= is empty"]),
    "empty dVAE": ([*PRIOR, "dvae="], None, ["dvae= is empty"]),
    "new name of a resumed run": (
        [*DVAE, "resume=true", "run_name=other"],
        None,
        ["run_name=other cannot rename", "leave run_name out"],
    ),
    "metric that is not measured": (
        [*DVAE, *SMALL, "monitor=validation/los"],
        None,
        ["monitor=validation/los is not measured", "validation/kl, validation/l1, validation/loss"],
    ),
    "metric of training": (
        [*DVAE, "resume=true", "trainer.max_steps=9", "monitor=train/loss"],
        None,
        ["monitor=train/loss is not measured at validations"],
    ),
    "number as a learning rate": (
        [*DVAE, "model.learning_rate=1e-3"],
        None,
        ["set one, model.learning_rate.then.start=…"],
    ),
    "float as a number of updates": (
        [*DVAE, "trainer.max_steps=1e1"],
        None,
        ["trainer.max_steps=10.0 is not possible", "(write 10)"],
    ),
    "no caption in training": (
        [*PRIOR, "model.caption_dropout=1"],
        None,
        ["model.caption_dropout=1 empties every caption"],
    ),
    "heads that do not divide the width": (
        [*PRIOR, "model.network.heads=3", "model.network.dim=32"],
        None,
        ["dim=32 is not a multiple of heads=3"],
    ),
    "run name outside of the logs": (
        [*DVAE, "run_name=../../escape"],
        None,
        ["run_name=../../escape is not possible"],
    ),
    "run name with a slash": ([*DVAE, "run_name=a/b"], None, ["without /"]),
    "run name of the newest run's file": ([*DVAE, "run_name=latest"], None, ["not 'latest'"]),
    "logs folder that is a file": (
        [*DVAE, *SMALL, "paths.logs={files}/0.txt"],
        write_images,
        ["0.txt", "cannot be written"],
    ),
    "data folder that is a file": (
        [*DVAE, *SMALL, "paths.data={files}/0.txt"],
        write_images,
        ["0.txt", "cannot be written"],
    ),
    "unknown precision": (
        [*DVAE, "trainer.precision=3"],
        None,
        ["trainer.precision=3 is not possible", "bf16-mixed"],
    ),
    "base of adapters": (
        ["experiment=finetune", "lora=default", "base={prior}"],
        None,
        ["base= is filled in by training: name the source of the weights with init=PATH"],
    ),
    "key of adapters without adapters": ([*PRIOR, "lora.rank=8"], None, ["set lora=default"]),
    "key of a search without a search": (
        [*DVAE, "hydra.sweeper.n_trials=2"],
        None,
        ["hydra.sweeper.n_trials= is for a search with Optuna: add sweep=NAME"],
    ),
    "key of no logger": ([*DVAE, "logger=none", "logger.csv.name=a"], None, ["logger=none"]),
    "newest run as the source of a sweep": (
        ["experiment=finetune", "trainer=cpu", "seed=1,2", "-m"],
        None,
        ["init=true names the newest run, which in a sweep is that of the job before"],
    ),
    "mistake in a model before its data": (
        [*DVAE, "data=folder", "data.source.path=/no", "+model.betas=[2,2]"],
        None,
        ["model.betas=[2, 2] is not possible"],
    ),
    "scales of blocks without a prior": (
        [*DVAE, "trainer.precision=16-mixed", "trainer.gradient_scaling=per_block"],
        None,
        ["trainer.gradient_scaling=per_block is for priors, not for stage=dvae"],
    ),
    "batch that processes cannot share": (
        [*DVAE, "trainer.devices=3", "data.batch_size=32"],
        None,
        ["data.batch_size=32", "divided by 3"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_writes_nothing(case, home):
    assert_refused(home, "train", *CASES[case])
