"""Models of other codes on weights that are made there, for live parity: what those tests share."""

import torch

from hiera_video.models.layouts import our_names

SMALL = dict(embed_dim=24, num_heads=1, stages=(1, 2, 2, 1), num_classes=7)


def a_clip(*size, batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def assert_close(actual, expected, of=None):
    """Within 1e-4 of the largest value. of: the largest value, where it is that of others, too."""
    scale = expected.abs().max() if of is None else of
    assert (actual - expected).abs().max() <= 1e-4 * scale


def assert_same_gradients(ours, theirs):
    """Of every parameter; keys' biases, which change nothing, are zero up to rounding in both."""
    expected = our_names(
        {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None},
        ours.state_dict(),
    )
    largest = max(g.abs().max() for g in expected.values())
    for name, parameter in ours.named_parameters():
        idle = name.endswith(("qkv.bias", "norm_k.bias"))
        scale = largest if idle else expected[name].abs().max()
        assert_close(parameter.grad, expected[name], of=scale)


# MViT, as it was published in 2021, out of MViTv2's switches.
OF_2021 = dict(rel_pos=False, residual_pool=False, pool_everywhere="kv", dim_mul_in_att=False)
VIDEOMAE = dict(  # transformers' config of a small one
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=192,
    num_frames=4,
)


def with_one_eps(model):
    """1e-6, that of its blocks, also in its attention, where PyTorchVideo has 1e-5."""
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    return model
