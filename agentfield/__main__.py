"""``python -m agentfield``: the command line without its script."""

from agentfield.cli import main

if __name__ == "__main__":
    main()
