"""Command line: `python -m tilewright train stage=dvae`."""

from tilewright.cli.main import main

if __name__ == "__main__":
    main()
