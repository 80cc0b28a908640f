"""Serves the playground page: `python src/demo.py`, then open http://127.0.0.1:7860."""

from tilewright.cli.demo import main

if __name__ == "__main__":
    main()
