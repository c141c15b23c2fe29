"""A direction as a control vector of llama.cpp, which other tools steer with."""

from __future__ import annotations

from pathlib import Path

from emorg import models
from emorg.models.directions import read
from emorg.models.gguf import need_gguf


def export_gguf(file: Path) -> Path:
    """Write a file's direction beside it as a control vector of llama.cpp, which repeng and vLLM's steering tools read.

    Tensor direction.N is added after decoder layer N, counted from 0: our layer N + 1. llama.cpp knows none for 0.
    Raises EmorgError where the gguf package is not installed.
    """
    need_gguf("--export gguf")
    from gguf import GGUFWriter

    direction, path = read(file), file.with_suffix(".gguf")
    writer = GGUFWriter(path.with_suffix(".new"), "controlvector")
    writer.add_string("controlvector.model_hint", models.shapes(str(direction.facts["base"])).config.model_type)
    writer.add_uint32("controlvector.layer_count", len(direction.vectors) - 2)
    for layer, vector in enumerate(direction.vectors[2:], 1):
        writer.add_tensor(f"direction.{layer}", vector.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").replace(path)
    return path
