"""Models by name: what a name means, how it is loaded, and how its chat template is read."""

from emorg.models.loading import (
    Loaded,
    adapter_weights,
    choose_device,
    choose_dtype,
    free_bytes,
    import_peft,
    load,
    load_tokenizer,
    need_bitsandbytes,
    out_of_memory,
    peft_around,
    shapes,
)
from emorg.models.names import DEFAULT, POCKET, POCKET_FOLDER, Named, location, resolve, weights_file

__all__ = [
    "DEFAULT",
    "POCKET",
    "POCKET_FOLDER",
    "Loaded",
    "Named",
    "adapter_weights",
    "choose_device",
    "choose_dtype",
    "free_bytes",
    "import_peft",
    "load",
    "load_tokenizer",
    "location",
    "need_bitsandbytes",
    "out_of_memory",
    "peft_around",
    "resolve",
    "shapes",
    "weights_file",
]
