"""Measures trained runs: `python src/eval.py metric=fid`."""

from tilewright.cli.eval import main

if __name__ == "__main__":
    main()
