"""hiera_video: pretrain, fine-tune, test and use 3D Hiera video models.

model = hiera_video.load("runs/hiera_b_16x4")
for prediction in model.predict("dog.mp4", top=5):
    print(prediction.label, prediction.score)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hiera_video.inference import load
    from hiera_video.system.errors import VideoError

__version__ = "0.2.0"
__all__ = ["VideoError", "load"]
# Imported when they are first used: `import hiera_video` alone takes no time.
_HOMES = {"load": "hiera_video.inference", "VideoError": "hiera_video.system.errors"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
