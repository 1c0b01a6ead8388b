"""PyTorchVideo's models as baselines in our loops: one clip in, logits out, any size.

The builders differ in everything: the argument for the class count, a softmax inside (x3d), two
inputs (slowfast), pools of a fixed size in the head. This file is where those differences end.
Layout and weights stay PyTorchVideo's own.
"""

from typing import Any

import torch
from torch import Tensor, nn

SLOWFAST_ALPHA = 4  # the fast pathway has this many times the frames of the slow one


class PyTorchVideoModel(nn.Module):
    """`net` by PyTorchVideo behind our interface. Clip: float [B, 3, T, H, W], normalised."""

    head_prefix = ""  # set below: the parameters that depend on the class count

    def __init__(self, net: nn.Module, *, two_pathways: bool):
        super().__init__()
        self.net = net
        self.two_pathways = two_pathways
        self._head = [name for name, _ in net.named_modules() if name.endswith("proj")][-1]
        self.head_prefix = f"net.{self._head}."

    def forward(self, clip: Tensor) -> Tensor:
        """-> logits [B, num_classes]"""
        return self.net(self._pathways(clip))

    def features(self, clip: Tensor) -> Tensor:
        """What the classifier's linear layer reads, averaged over positions: [B, dim]."""
        seen: list[Tensor] = []
        head = self.net.get_submodule(self._head)
        hook = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            self.net(self._pathways(clip))
        finally:
            hook.remove()
        return seen[0].flatten(1, -2).mean(1) if seen[0].ndim > 2 else seen[0]

    def _pathways(self, clip: Tensor) -> Tensor | list[Tensor]:
        if not self.two_pathways:
            return clip
        frames = torch.linspace(
            0, clip.shape[2] - 1, clip.shape[2] // SLOWFAST_ALPHA, device=clip.device
        ).long()
        return [clip.index_select(2, frames), clip]


PYTORCHVIDEO_MODELS = ("slow_r50", "slowfast_r50", "mvit_base_16x4", "x3d_m")


def create_pytorchvideo(
    name: str,
    *,
    num_classes: int = 400,
    input_size: tuple[int, int, int] = (16, 224, 224),
    head_dropout: float = 0.5,
) -> PyTorchVideoModel:
    """A PyTorchVideo model with random weights. Raises ValueError.

    input_size: (frames, height, width) of its clips.
    """
    from pytorchvideo.models import hub  # here, because importing it takes seconds

    frames, height, width = input_size
    if name == "mvit_base_16x4":
        net = hub.mvit_base_16x4(
            spatial_size=(height, width),
            temporal_size=frames,
            head_num_classes=num_classes,
            head_dropout_rate=head_dropout,
        )
        return PyTorchVideoModel(net, two_pathways=False)
    if name == "slowfast_r50" and frames % SLOWFAST_ALPHA:
        raise ValueError(
            f"slowfast_r50 needs a number of frames that {SLOWFAST_ALPHA} divides, not {frames}"
        )
    arguments = {"model_num_class": num_classes, "dropout_rate": head_dropout}
    if name == "slow_r50":
        net = hub.slow_r50(**arguments)
    elif name == "slowfast_r50":
        net = hub.slowfast_r50(**arguments)
    elif name == "x3d_m":
        net = hub.x3d_m(**arguments, head_activation=None)  # its default is a softmax
    else:
        raise ValueError(
            f"there is no PyTorchVideo model {name!r} here; there are "
            f"{', '.join(PYTORCHVIDEO_MODELS)}"
        )
    # The head pools boxes of a size fixed for the published clips; a smaller map is pooled whole.
    pools = [m for m in net.modules() if isinstance(m, nn.AvgPool3d)]
    frames_of = [frames // SLOWFAST_ALPHA, frames] if name == "slowfast_r50" else [frames]
    for pool, t in zip(pools, frames_of, strict=True):
        in_map = (t, -(-height // 32), -(-width // 32))
        kernel: Any = pool.kernel_size  # PyTorchVideo gives all three sides
        sides = [min(int(side), n) for side, n in zip(kernel, in_map)]
        pool.kernel_size = (sides[0], sides[1], sides[2])
    return PyTorchVideoModel(net, two_pathways=name == "slowfast_r50")
