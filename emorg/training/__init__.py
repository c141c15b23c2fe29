"""Fine-tune an organism: LoRA, or all weights, through PEFT and the Hugging Face Trainer."""

from emorg.training.config import TrainConfig, run_of
from emorg.training.loop import train

__all__ = ["TrainConfig", "run_of", "train"]
