"""Measures a trained run: `python src/eval.py metric=fid`."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from tilewright import command_line, runs
from tilewright.errors import UserError


@command_line.command("eval")
def main(config: DictConfig) -> None:
    if OmegaConf.is_missing(config, "metric"):
        raise UserError("say what to measure: metric=fid, metric=reconstruction, metric=alignment")
    chosen = command_line.choices()
    with open_dict(config):
        config.pop("data", None)  # its name says which run; the run itself knows its data
    command_line.check(config)
    name = chosen["metric"]
    run = runs.find(Path(config.paths.logs), config.stage, config.run, data=chosen.get("data"))
    trained = runs.load_config(run)

    from hydra.utils import instantiate

    from tilewright.evaluations import results

    folder = run / "eval" / name
    device = command_line.device(config.device)
    evaluation = instantiate(config.metric)
    # The run's own data, as pictures and captions: no training, so neither tokens nor tokenizers.
    data = instantiate(trained.data, tokenizer=None, image_tokenizer=None)
    figures = evaluation(run, data, seed=config.seed, device=device, folder=folder)
    path = results.write(figures, folder, run=str(run), data=trained.choices.data, seed=config.seed)
    results.show(figures, f"{name} of {run}")
    print(f"Figures and pictures are in {path.parent}")


if __name__ == "__main__":
    main()
