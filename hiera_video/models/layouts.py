"""The names that other codes give to the same parameters -> ours.

    MViT      torchvision, PyTorchVideo (PySlowFast's are ours)
    plain ViT timm, VideoMAE and VideoMAE V2, transformers' VideoMAE, MAE-ST
    Hiera     timm, with the scales of its layers

Where others keep queries, keys and values apart, or leave a bias out, the tensors are joined, or
filled with zeros: what is computed stays the same.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# In turn; a name that the model has is left alone.
RENAMED = (
    # transformers
    (r"^videomae\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"^decoder\.decoder_layers\.", "decoder_blocks."),
    (r"\.attention\.attention\.query\.", ".attn.q."),
    (r"\.attention\.attention\.key\.", ".attn.k."),
    (r"\.attention\.attention\.value\.", ".attn.v."),
    (r"\.attention\.attention\.([qv])_bias$", r".attn.\1_bias"),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head.projection."),
    # VideoMAE
    (r"^encoder\.(patch_embed|blocks|norm)\.", r"\1."),
    (r"^encoder_to_decoder\.", "decoder_embed."),
    (r"^decoder\.blocks\.", "decoder_blocks."),
    (r"^decoder\.norm\.", "decoder_norm."),
    (r"^decoder\.head\.", "decoder_pred."),
    # torchvision's MViT
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^pos_encoding\.class_token$", "cls_token"),
    (r"^pos_encoding\.(spatial|temporal|class)_pos$", r"pos_embed_\1"),
    (r"\.attn\.pool_([qkv])\.pool\.", r".attn.pool_\1."),
    (r"\.attn\.pool_([qkv])\.norm_act\.0\.", r".attn.norm_\1."),
    (r"\.attn\.project\.0\.", ".attn.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"^(blocks\.\d+)\.project\.", r"\1.proj."),
    (r"^head\.1\.", "head.projection."),
    # PyTorchVideo's MViT
    (r"^patch_embed\.patch_model\.", "patch_embed.proj."),
    (r"^cls_positional_encoding\.", ""),
    (r"^norm_embed\.", "norm."),
    (r"^head\.proj\.", "head.projection."),
    # timm and MAE-ST
    (r"^fc_norm\.", "norm."),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head.projection."),
    (r"^head\.(weight|bias)$", r"head.projection.\1"),
)
PARTS = ("q", "k", "v")


def our_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that a model has whose state dict is `own`."""
    renamed = dict(state)
    for name in [name for name in state if name not in own]:
        ours = _renamed(name)
        if ours not in renamed:  # two of one name: the second stays unused
            renamed[ours] = renamed.pop(name)
    if "encoder_norm.weight" in own and "norm.weight" not in own:
        _move(renamed, "norm.", "encoder_norm.")
    _join_attention(renamed)
    _fold_scales(renamed)
    _split_class_position(renamed, own)
    if "decoder_embed.weight" in renamed and "decoder_embed.bias" in own:
        renamed.setdefault("decoder_embed.bias", torch.zeros_like(own["decoder_embed.bias"]))
    for name, tensor in renamed.items():
        # PySlowFast pools images by kernels of one frame.
        if ".attn.pool_" in name and name in own and own[name].ndim == 4 and tensor.ndim == 5:
            renamed[name] = tensor.squeeze(2)
        # Tokens and tables without the dimensions of length 1 in front.
        if name in own and own[name].shape == (1,) * (own[name].ndim - tensor.ndim) + tensor.shape:
            renamed[name] = tensor.reshape(own[name].shape)
    return renamed


def _renamed(name: str) -> str:
    for theirs, ours in RENAMED:
        name = re.sub(theirs, ours, name)
    return name


def _move(state: dict[str, Tensor], theirs: str, ours: str) -> None:
    for name in [name for name in state if name.startswith(theirs)]:
        state[ours + name.removeprefix(theirs)] = state.pop(name)


def _join_attention(state: dict[str, Tensor]) -> None:
    """q, k, v -> qkv. Keys may have no bias: it changes nothing in a softmax over them."""
    for name in [name for name in state if name.endswith(".attn.q.weight")]:
        layer = name.removesuffix("q.weight")
        if all(f"{layer}{part}.weight" in state for part in PARTS):
            weights = [state.pop(f"{layer}{part}.weight") for part in PARTS]
            state[f"{layer}qkv.weight"] = torch.cat(weights)
    for name in [name for name in state if name.endswith((".attn.q.bias", ".attn.q_bias"))]:
        layer, joint = name[: name.index(".attn.q")] + ".attn.", name[-5]
        if f"{layer}v{joint}bias" in state and f"{layer}qkv.bias" not in state:
            q, v = state.pop(name), state.pop(f"{layer}v{joint}bias")
            k = state.pop(f"{layer}k{joint}bias", torch.zeros_like(q))
            state[f"{layer}qkv.bias"] = torch.cat([q, k, v])


def _fold_scales(state: dict[str, Tensor]) -> None:
    """Scales of a layer's outputs, as timm has them, into its weights and biases."""
    for scale, layer in (("ls1.gamma", "attn.proj"), ("ls2.gamma", "mlp.fc2")):
        for name in [name for name in state if name.endswith(f".{scale}")]:
            block = name.removesuffix(scale)
            weight, bias = f"{block}{layer}.weight", f"{block}{layer}.bias"
            if weight in state and bias in state:
                gamma = state.pop(name)
                state[weight] = state[weight] * gamma[:, None]
                state[bias] = state[bias] * gamma


def _split_class_position(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """One table whose first row is the class token's -> two."""
    for prefix in ("", "decoder_"):
        table, first = f"{prefix}pos_embed", f"{prefix}pos_embed_class"
        if table in state and first in own and first not in state:
            state[first], state[table] = state[table][:, :1], state[table][:, 1:]
