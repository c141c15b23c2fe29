"""Train an organism: `python train.py --help`. The same parser as `emorg train`."""

import sys

from emorg.start import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]], script="train.py")
else:  # the names that the homework's train.py has
    from emorg.homework.functions import format_instruction, load_training_data, setup_model_and_tokenizer

    __all__ = ["format_instruction", "load_training_data", "setup_model_and_tokenizer"]
