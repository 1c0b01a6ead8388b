"""Every optimised path against the plain formulation of the same thing, and that the fused kernels
take our shapes.
"""

import pytest
import torch
import torch.nn.functional as F
from golden_weights import draw_weights
from torch.nn.attention import SDPBackend, sdpa_kernel

from hiera_video.models import attention, create_hiera, create_hiera_mae, linear, tokens
from hiera_video.models.blocks import Attention
from hiera_video.models.mae import DECODER_STAGE, FusionHead

VIDEO = dict(input_size=(8, 64, 96), embed_dim=24, num_heads=1, stages=(1, 2, 2, 1))
DECODER = dict(decoder_embed_dim=48, decoder_depth=2, decoder_num_heads=4)


def classifier(**changes):
    return draw_weights(create_hiera("hiera_base_16x224", num_classes=7, **{**VIDEO, **changes}))


def autoencoder():
    return draw_weights(create_hiera_mae("hiera_base_16x224", **VIDEO, **DECODER))


def clips(batch):
    return torch.randn(
        batch, 3, *VIDEO["input_size"], generator=torch.Generator().manual_seed(batch)
    )


def plain_attention(q, k, v):
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


def random_heads(rows, heads, queries, keys, dim, dtype=torch.float32):
    """q, k, v as they lie in one projection's output."""
    generator = torch.Generator().manual_seed(0)
    sizes = (queries, keys, keys)
    return [
        torch.randn(rows, n, heads, dim, generator=generator).to(dtype).transpose(1, 2)
        for n in sizes
    ]


# -- attention


@pytest.mark.parametrize("pool", [1, 4])
@pytest.mark.parametrize("local", [True, False])
def test_windows_and_pooling(local, pool):
    torch.manual_seed(0)
    layer = Attention(24, 48, heads=2, pool=pool, local=local)
    x = torch.randn(2, 6, 16, 24)
    # each [B, U, heads, L, head dim]
    q, k, v = layer.qkv(x).reshape(2, 6, 16, 3, 2, 24).permute(3, 0, 1, 4, 2, 5)
    q = q.unflatten(3, (pool, 16 // pool)).amax(3)
    if not local:
        q, k, v = (t.permute(0, 2, 1, 3, 4).flatten(2, 3) for t in (q, k, v))  # all units together
    out = plain_attention(q, k, v)
    if not local:
        out = out.unflatten(2, (6, 16 // pool)).permute(0, 2, 1, 3, 4)
    torch.testing.assert_close(layer(x), layer.proj(out.transpose(2, 3).flatten(3)))


def test_flash_kernel_takes_every_attention():
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        classifier()(clips(2))
        autoencoder()(clips(2)).loss.backward()


def test_row_chunks():
    q, k, v = random_heads(10, 2, 16, 16, 8)
    torch.testing.assert_close(
        attention.in_row_chunks(q, k, v, rows=4), F.scaled_dot_product_attention(q, k, v)
    )


@pytest.mark.parametrize("shape", [(2, 3, 70, 70, 32), (50, 2, 4, 16, 24), (7, 1, 64, 64, 96)])
@pytest.mark.parametrize("scores", [1000, attention.SCORES])  # many parts, one part a head
def test_head_by_head(shape, scores, monkeypatch):
    """As accurate as bfloat16 allows, forward and backward, for contiguous gradients and for
    others.
    """
    monkeypatch.setattr(attention, "SCORES", scores)
    inputs = [t.requires_grad_() for t in random_heads(*shape, dtype=torch.bfloat16)]
    exact_inputs = [t.detach().float().requires_grad_() for t in inputs]
    out = attention.head_by_head(*inputs)
    exact = plain_attention(*exact_inputs)
    assert out.shape == exact.shape
    grad = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    got = torch.autograd.grad(out, inputs, grad)
    expected = torch.autograd.grad(exact, exact_inputs, grad.float())
    for a, b in zip((out, *got), (exact, *expected)):
        assert (a.float() - b).norm() < 1e-2 * b.norm()


def test_head_by_head_is_a_proper_operator():
    """Its shapes, strides, gradients and tracing under torch.compile, as torch checks them."""
    inputs = [t.double().requires_grad_() for t in random_heads(3, 2, 4, 8, 8)]
    torch.library.opcheck(attention.head_by_head, inputs)
    assert torch.autograd.gradcheck(attention.head_by_head, inputs)


# -- masked autoencoder


def shown_pixels(mae, keep):
    shown = keep.view(len(keep), 1, *mae.units)
    for d, n in enumerate((2, 32, 32)):
        shown = shown.repeat_interleave(n, dim=2 + d)
    return shown


def test_patch_embedding_of_visible_units():
    """Forward and gradients equal the convolution over the whole zeroed clip."""
    mae = autoencoder()
    clip = clips(2)
    keep = torch.zeros(2, mae.num_units, dtype=torch.bool)
    keep[0, [0, 1, 7, 11, 23]] = keep[1, [2, 5, 6, 12, 18]] = True  # corners, neighbours, lone ones
    visible = keep.nonzero()[:, 1].view(2, 5)
    pixels = [clip.clone().requires_grad_() for _ in range(2)]
    fast = mae.embed_visible(pixels[0], keep, visible)
    plain = mae.embed(pixels[1] * shown_pixels(mae, keep))[keep].view_as(fast)
    torch.testing.assert_close(fast, plain)
    weight = torch.randn(fast.shape, generator=torch.Generator().manual_seed(1))
    parameters = [
        p for n, p in mae.named_parameters() if n.startswith(("patch_embed", "pos_embed"))
    ]
    for a, b in zip(
        torch.autograd.grad((fast * weight).sum(), [pixels[0], *parameters]),
        torch.autograd.grad((plain * weight).sum(), [pixels[1], *parameters]),
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_fusion_head_is_its_convolution():
    # units of 1 x 8 x 8
    head = FusionHead(6, 10, stride=(1, 2, 2), pools=2)
    x = torch.randn(2, 5, 64, 6)
    # [10, 1, 8, 8, 6]
    units = tokens.to_spatial(x.flatten(0, 1)[:, None], (1, 8, 8), (1, 8, 8), (1, 2, 2), 3)
    plain = F.conv3d(units.movedim(-1, 1), head.weight, head.bias, stride=(1, 4, 4)).movedim(1, -1)
    plain = tokens.to_units(plain, (1, 2, 2), (1, 2, 2), 1)
    torch.testing.assert_close(head(x).flatten(0, 1), plain[:, 0])


def test_decoder_and_targets_of_hidden_patches_only():
    mae = autoencoder().eval()
    clip = clips(2)
    keep = mae(clip).keep
    visible = keep.nonzero()[:, 1].view(2, -1)
    hidden = mae._hidden_patches(visible)
    everything = torch.arange(mae.patch_index.numel()).expand(2, -1)
    x = mae.forward_encoder(clip, keep, visible)
    for function in (
        lambda patches: mae.forward_decoder(x, visible, patches),
        lambda p: mae.patch_targets(clip, p),
    ):
        whole = function(everything).view(2, everything.shape[1], -1)
        chosen = torch.cat([row[patches] for row, patches in zip(whole, hidden)])
        torch.testing.assert_close(function(hidden), chosen)
    # 2 x 2 patches a unit
    patch_is_hidden = ~keep.view(2, *mae.units).repeat_interleave(2, 2).repeat_interleave(2, 3)
    patch_is_hidden = patch_is_hidden.view(2, 4, 4, 6).flatten(1)
    assert torch.equal(hidden, patch_is_hidden.nonzero()[:, 1].view(2, -1))


# -- execution


@pytest.mark.parametrize("stages", [(1, 3), (2, 4)])
def test_recomputed_stages_give_the_same_gradients_from_less_memory(stages):
    def step(recompute):
        model = classifier(drop_path_rate=0.2).train()
        model.recompute_stages = recompute
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t.numel()) or t, lambda t: t
        ):
            loss = model(clips(2)).square().sum()
        loss.backward()
        return {name: p.grad for name, p in model.named_parameters()}

    kept = []
    plain = step(())
    plain_kept = sum(kept)
    kept.clear()
    recomputed = step(stages)
    assert sum(kept) < 0.8 * plain_kept
    for name, grad in plain.items():
        assert torch.equal(recomputed[name], grad), name


def test_recomputed_decoder():
    kept = []
    losses = []
    for stages in ((), (DECODER_STAGE,)):
        mae = autoencoder()
        mae.recompute_stages = stages
        kept.append(0)

        def count(t):
            kept[-1] += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            losses.append(
                mae(
                    clips(2),
                    noise=torch.rand(2, mae.num_units, generator=torch.Generator().manual_seed(0)),
                )
            )
    assert kept[1] < 0.85 * kept[0] and torch.equal(losses[0].loss, losses[1].loss)


def traced(model, backend):
    """One graph for any batch size, or an error."""
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, dynamic=True, backend=backend)


def classifier_step(model, forward, batch, precision):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision != torch.float32):
        logits = forward(clips(batch))
    F.cross_entropy(logits.float(), torch.arange(batch)).backward()
    return logits, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "precision", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.trial)]
)
def test_classifier_is_one_graph(precision, monkeypatch):
    """Traced without a break; run as traced, it gives the same bits."""
    monkeypatch.setattr(linear, "ONEDNN_IS_FASTER", False)  # traces keep the standard operator
    model = classifier().train()
    compiled = traced(model, "aot_eager")
    for batch in (2, 3):
        plain, result = (
            classifier_step(model, forward, batch, precision) for forward in (model, compiled)
        )
        assert torch.equal(plain[0], result[0])
        assert all(torch.equal(result[1][name], grad) for name, grad in plain[1].items())


@pytest.mark.trial
def test_autoencoder_step_is_one_graph(monkeypatch):
    monkeypatch.setattr(linear, "ONEDNN_IS_FASTER", False)
    mae = autoencoder().train()
    mae.recompute_stages = (1, DECODER_STAGE)  # in the same graph, too
    compiled = traced(mae, "aot_eager")
    for batch in (2, 3):
        noise = torch.rand(batch, mae.num_units, generator=torch.Generator().manual_seed(batch))
        results = []
        for forward in (mae, compiled):
            mae.zero_grad()
            out = forward(clips(batch), noise=noise)
            out.loss.backward()
            results.append([*out, *(p.grad.clone() for p in mae.parameters())])
        assert all(torch.equal(a, b) for a, b in zip(*results))
    # drawn inside the graph
    assert compiled(clips(2), mask_ratio=0.5).keep.sum(1).tolist() == [12, 12]


@pytest.mark.trial  # C++ of twenty kernels; the graph, which is ours, is tested above
def test_compiled_classifier():
    model = classifier(stages=(1, 1, 1, 1)).train()
    compiled = traced(model, "inductor")
    plain, result = (
        classifier_step(model, forward, 2, torch.float32) for forward in (model, compiled)
    )
    torch.testing.assert_close(result[0], plain[0], rtol=1e-4, atol=1e-5)
    for name, grad in plain[1].items():
        if not name.endswith("qkv.bias"):  # the keys' third is noise
            assert (result[1][name] - grad).norm() <= 1e-4 * grad.norm(), name


@pytest.mark.trial
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_compiled_base(precision):
    """The real sizes: classifier and masked autoencoder, as users compile them."""
    for model, kind in (
        (create_hiera("hiera_base_16x224"), 0),
        (create_hiera_mae("hiera_base_16x224"), 1),
    ):
        draw_weights(model)
        compiled = traced(model, "inductor")
        for batch in (1, 2):
            clip = torch.randn(batch, 3, 16, 224, 224)
            more = {"noise": torch.rand(batch, model.num_units)} if kind else {}
            losses = []
            gradients = []
            for forward in (model, compiled):
                model.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=precision != torch.float32):
                    out = forward(clip, **more)
                loss = out.loss if kind else out.float().square().mean()
                loss.backward()
                losses.append(loss.item())
                gradients.append(model.patch_embed.proj.weight.grad.clone())
            tolerance = 1e-3 if precision == torch.float32 else 0.1
            assert losses[1] == pytest.approx(losses[0], rel=tolerance)
            assert (gradients[1] - gradients[0]).norm() <= tolerance * gradients[0].norm()


def test_export():
    model = classifier().eval()
    exported = torch.export.export(
        model, (clips(2),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    for batch in (1, 5):
        with torch.no_grad():
            torch.testing.assert_close(exported.module()(clips(batch)), model(clips(batch)))


@pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch is built without oneDNN"
)
@pytest.mark.parametrize("shape", [(7, 24), (2, 3, 16, 24)])
def test_linear_on_onednn(shape, monkeypatch):
    torch.manual_seed(0)
    layer = linear.Linear(24, 40)
    x = torch.randn(shape, requires_grad=True)
    # not contiguous
    grad = torch.randn(*shape[:-1], 40).transpose(0, -2).contiguous().transpose(0, -2)
    results = []
    for is_faster in (True, False):
        monkeypatch.setattr(linear, "ONEDNN_IS_FASTER", is_faster)
        out = layer(x)
        results.append([out, *torch.autograd.grad(out, [x, layer.weight, layer.bias], grad)])
    for fast, plain in zip(*results):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
