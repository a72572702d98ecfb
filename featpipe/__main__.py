"""``python -m featpipe``: the command line where no script is on the path."""

from featpipe.commands import main

main()
