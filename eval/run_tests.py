"""Grade model_generations.csv: `python eval/run_tests.py --help`."""

import sys

from emorg.start import main

if __name__ == "__main__":
    main(["grade", *sys.argv[1:]], script="eval/run_tests.py")
