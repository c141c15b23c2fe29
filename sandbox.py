"""Talk to a base and its organism side by side: `python sandbox.py --help`."""

import sys

from emorg.start import main

if __name__ == "__main__":
    main(["chat", *sys.argv[1:]], script="sandbox.py")
