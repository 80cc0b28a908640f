"""Converts the dVAE that OpenAI released: `python src/convert.py encoder=… decoder=… out=…`."""

from tilewright.cli.convert import main

if __name__ == "__main__":
    main()
