"""Encodes a data set to image tokens: `python src/encode.py data=… dvae=… processes=N`."""

from tilewright.cli.encode import main

if __name__ == "__main__":
    main()
