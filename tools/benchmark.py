"""Side-by-side figures in one run: models, reading, loops. See benchmarks/.

python tools/benchmark.py {model,pretrain,finetune} ..    # ours against the official model
python tools/benchmark.py {loader,views} ..               # against PyTorchVideo's loader
python tools/benchmark.py adapt ..                        # all parameters, frozen stages, LoRA
python tools/benchmark.py loop ..                         # what our loops cost beside the model
python tools/benchmark.py {table1,masking} ..             # the paper's steps, ViT, ways of masking
"""

import sys
from importlib import import_module

import door  # noqa: F401 - the package is found through it

from hiera_video.system.errors import UserError, run_command

ROOMS = {
    "model": "models",
    "pretrain": "models",
    "finetune": "models",
    "loader": "reading",
    "views": "reading",
    "loop": "loops",
    "adapt": "adapting",
    "table1": "paper",
    "masking": "paper",
}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(f"usage: benchmark.py NAME ...\n\n{__doc__}")
        return
    if name not in ROOMS:
        raise UserError(f"there is no benchmark {name!r}; there are {', '.join(ROOMS)}")
    room = import_module(f"benchmarks.{ROOMS[name]}")
    room.main(room.parser().parse_intermixed_args())


if __name__ == "__main__":
    run_command(main)
