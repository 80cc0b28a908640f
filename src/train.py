"""Trains one stage: `python src/train.py stage=dvae`, then `python src/train.py stage=prior`."""

from tilewright.cli.train import main

if __name__ == "__main__":
    main()
