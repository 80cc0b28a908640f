"""Makes a model that travels of a run: `python src/export.py run=… out=…`."""

from tilewright.cli.export import main

if __name__ == "__main__":
    main()
