"""Lists trained runs, or compares some of them: `python src/runs.py compare=A compare=B`."""

from tilewright.cli.runs import main

if __name__ == "__main__":
    main()
