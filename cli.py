"""The command line, from a checkout: ``python cli.py embed data/``."""

from featpipe.commands import main

if __name__ == "__main__":
    main()
