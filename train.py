"""Train an organism: `python train.py --help`. The same parser as `emorg train`."""

from emorg.cli import main
from emorg.homework.functions import format_instruction, load_training_data, setup_model_and_tokenizer

__all__ = ["format_instruction", "load_training_data", "setup_model_and_tokenizer"]

if __name__ == "__main__":
    import sys

    main(["train", *sys.argv[1:]], script="train.py")
