"""Opens a page to play on: `python src/demo.py`, then http://127.0.0.1:7860 in a browser."""

from tilewright.cli.demo import main

if __name__ == "__main__":
    main()
