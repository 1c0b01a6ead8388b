"""Published weight files to ours and back.

    python tools/convert_checkpoint.py hiera_base_16x224.pth hiera_base_16x224.safetensors --to native
    python tools/convert_checkpoint.py runs/hiera_b_16x4 mine.pth --to official

native: safetensors with the model's name and arguments, and class names, mean and std where they are known. official:
`{"model_state": ...}`, which the official code loads strictly. Tensors are copied bit for bit; the way there and back gives the
same. The model is found by the names and shapes of the tensors, unless the file tells it or --model does.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout works without installing it

from hiera_video.errors import UserError, run_command


def find_model(state: dict) -> tuple[str, dict]:
    """(name, arguments) of the named model that the tensors belong to. Raises UserError."""
    import torch

    from hiera_video.models.zoo import create_model, hiera_arguments, list_models

    shapes = {name: tensor.shape for name, tensor in state.items()}
    for name in list_models():
        if name.startswith("mae_") != ("decoder_pos_embed" in shapes):
            continue
        classes = {"num_classes": len(state["head.projection.bias"])} if "head.projection.bias" in state else {}
        with torch.device("meta"):
            model = create_model(name, **classes)
        if {n: t.shape for n, t in model.state_dict().items()} == shapes:
            return name, hiera_arguments(name, **classes)
    raise UserError("these tensors are none of the named models'; say which with --model, if it is one")


def convert(source: str, target: Path, *, to: str, model: str | None, classes: Path | None) -> None:
    import torch
    from safetensors.torch import save_file

    from hiera_video.models.weights import metadata_entry, read_weights
    from hiera_video.models.zoo import hiera_arguments

    try:
        state, metadata = read_weights(source)
        state = {name: tensor.contiguous() for name, tensor in state.items()}
        if to == "official":
            torch.save({"model_state": state}, target)
            return
        if "model" not in metadata:
            name, arguments = (model, hiera_arguments(model)) if model else find_model(state)
            video = len(arguments["input_size"]) == 3  # the published video weights and image weights differ in this
            mean, std = ([0.45] * 3, [0.225] * 3) if video else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            metadata = {"model": {"name": name, "arguments": arguments}, "mean": mean, "std": std, "classes": []}
    except ValueError as e:
        raise UserError(str(e)) from e
    if classes is not None:
        names = classes.read_text(encoding="utf-8").splitlines()
        head = state.get("head.projection.bias")
        if head is None or len(head) != len(names):
            raise UserError(
                f"--classes: {classes} names {len(names)} classes, the weights have {0 if head is None else len(head)}"
            )
        metadata = {**metadata, "classes": names}
    save_file(state, target, metadata=metadata_entry(metadata))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN", help="weight file, step folder or run folder")
    parser.add_argument("target", metavar="OUT", type=Path)
    parser.add_argument("--to", choices=("official", "native"), required=True)
    parser.add_argument("--model", help="name of the model, where tensors alone do not tell it")
    parser.add_argument("--classes", type=Path, help="class names, one a line, to write into a native file")
    args = parser.parse_args()
    convert(args.source, args.target, to=args.to, model=args.model, classes=args.classes)
    print(f"{args.target}: {args.target.stat().st_size / 2**20:.1f} MiB, {args.to} layout")


if __name__ == "__main__":
    run_command(main)
