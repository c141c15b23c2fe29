"""Check the training data before training on it: `python test_data_loading.py --help`."""

import sys

from emorg.start import main

if __name__ == "__main__":
    main(["data", "check", *sys.argv[1:]], script="test_data_loading.py")
