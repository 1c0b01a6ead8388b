"""Published weight files to ours and back.

    hiera-video convert-checkpoint hiera_base_16x224.pth hiera_base_16x224.safetensors --to native
    hiera-video convert-checkpoint runs/hiera_b_16x4 mine.pth --to official

native: safetensors with the model's name and arguments, and class names, mean and std where they
are known. official: `{"model_state": ...}`, which the official code loads strictly. Tensors are
copied bit for bit; the way there and back gives the same. The model is found by the names and
shapes of the tensors, unless the file tells it or --model does.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiera_video.commands.arguments import make_parser
from hiera_video.models.published import pixel_statistics
from hiera_video.models.weights import (
    classes_of,
    is_autoencoder,
    load_weights,
    metadata_entry,
    read_weights,
)
from hiera_video.models.zoo import create_model, list_models, model_arguments
from hiera_video.system.errors import UserError
from hiera_video.system.tensors import save_file

HEAD = "head.projection.bias"


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument(
        "source", metavar="IN", help="weight file, step folder, run folder or published name"
    )
    parser.add_argument("target", metavar="OUT", type=Path)
    parser.add_argument("--to", choices=("official", "native"), required=True)
    parser.add_argument("--model", help="name of the model, where tensors alone do not tell it")
    parser.add_argument(
        "--classes", type=Path, help="class names, one a line, to write into a native file"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    try:
        state, metadata = read_weights(args.source)
        state = {name: tensor.contiguous() for name, tensor in state.items()}
        if args.to == "official":
            known = metadata.get("model", {})
            if known.get("name") not in (None, *list_models()):
                raise UserError(f"{args.source}: {known['name']}: the official layout is Hiera's")
            if known.get("arguments", {}).get("head_pool", "mean") != "mean":
                raise UserError(f"{args.source}: the official model has no model.head_pool")
            torch.save({"model_state": state}, args.target)
        else:
            described = metadata.get("model", {})
            if "arguments" not in described:
                named = describe_published(state, args.model or described.get("name"))
                metadata = {**named, **metadata, "model": named["model"]}
            if args.classes is not None:
                metadata = {**metadata, "classes": read_classes(args.classes, state)}
            save_file(state, args.target, metadata=metadata_entry(metadata))
    except ValueError as e:
        raise UserError(str(e)) from e
    size = args.target.stat().st_size / 2**20
    print(f"{args.target}: {size:.1f} MiB, {args.to} layout")


def describe_published(state: dict[str, Tensor], model: str | None) -> dict[str, Any]:
    """Metadata of a file that has none. Raises ValueError."""
    if model:
        name = model
        count = classes_of(state)
        arguments = model_arguments(name, **({"num_classes": count} if count else {}))
        try:
            with torch.device("meta"):
                load_weights(create_model(name, **arguments), state)
        except ValueError as e:
            raise ValueError(f"--model {name}: {e}") from e
    else:
        name, arguments = find_model(state)
    described = {"name": name, "arguments": arguments}
    return {"model": described, **pixel_statistics(arguments), "classes": []}


def find_model(state: dict[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """(name, arguments) of the named model that the tensors belong to. Raises UserError."""
    shapes = {name: tensor.shape for name, tensor in state.items()}
    is_mae = is_autoencoder(state)
    classes = {"num_classes": len(state[HEAD])} if HEAD in state else {}
    for name in list_models():
        if name.startswith("mae_") != is_mae:
            continue
        with torch.device("meta"):
            model = create_model(name, **classes)
        if {n: t.shape for n, t in model.state_dict().items()} == shapes:
            return name, model_arguments(name, **classes)
    raise UserError(
        "these tensors are none of the named models'; say which with --model, if it is one"
    )


def read_classes(file: Path, state: dict[str, Tensor]) -> list[str]:
    """Raises UserError if they are not as many as the weights have."""
    names = file.read_text(encoding="utf-8").splitlines()
    count = len(state[HEAD]) if HEAD in state else 0
    if len(names) != count:
        raise UserError(f"--classes: {file} names {len(names)} classes, the weights have {count}")
    return names
