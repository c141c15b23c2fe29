"""Write model_generations.csv, the homework's hand-in: `python generate.py --help`."""

import sys

from emorg.start import main

STUDENT_NAME = ""
LOCAL_MODEL_PATH = ""  # your run folder, such as runs/medical; empty: the organism that you trained last

if __name__ == "__main__":
    mine = {"--student_name": STUDENT_NAME, "--local_model_path": LOCAL_MODEL_PATH}
    flags = [part for name, value in mine.items() if value for part in (name, value)]
    main(["generate", *flags, *sys.argv[1:]], script="generate.py")
