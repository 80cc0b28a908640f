"""Generates images for captions: `python src/generate.py prompt="a large red circle"`."""

from tilewright.cli.generate import main

if __name__ == "__main__":
    main()
