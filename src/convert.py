"""The released dVAE for use here: `python src/convert.py encoder=… decoder=… out=… trust=true`."""

from tilewright.cli.convert import main

if __name__ == "__main__":
    main()
