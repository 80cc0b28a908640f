"""Turns a run into a model to share: `python src/export.py run=… out=…`."""

from tilewright.cli.export import main

if __name__ == "__main__":
    main()
