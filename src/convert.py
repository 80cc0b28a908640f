"""Converts a checkpoint of another project: `python src/convert.py family=NAME … out=FOLDER`."""

from tilewright.cli.convert import main

if __name__ == "__main__":
    main()
