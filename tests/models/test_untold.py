"""Weights in a model that computes something else of the same tensors: not taken in silence."""

import pytest

from hiera_video.models import create_model, load_weights
from hiera_video.training.checkpoint import save_weights

CLIP = dict(input_size=(4, 64, 64))
BLOCKS = dict(embed_dim=16, num_heads=1, stages=(1, 1, 2, 1))
DECODER = dict(decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=1)
MVIT = dict(**CLIP, **BLOCKS, step="c", kv_stride=(1, 4, 4))
HIERA = dict(**CLIP, **BLOCKS)
NAMES = {"mvit": "mvit_v2_small_16x224", "hiera": "hiera_tiny_16x224"}


def file_of(folder, name, arguments):
    file = folder / "weights.safetensors"
    model = create_model(name, **arguments)
    save_weights(file, model.state_dict(), {"model": {"name": name, "arguments": arguments}})
    return file


@pytest.mark.parametrize(
    "family, trained, change, told",
    [
        ("mvit", MVIT, dict(step="f"), {"step": ("c", "f")}),
        ("mvit", MVIT, dict(kv_stride=(1, 2, 2)), {"kv_stride": ((1, 4, 4), (1, 2, 2))}),
        ("mvit", MVIT, dict(separate=False), {"separate": (True, False)}),
        ("mvit", MVIT, dict(residual_pool=False), {"residual_pool": (True, False)}),
        ("mvit", {**MVIT, "step": "f"}, dict(kv_stride=(1, 2, 2)), {}),  # nothing is pooled
        ("mvit", MVIT, dict(step="b", pool_everywhere="none"), {}),  # the same by its switches
        ("hiera", HIERA, dict(num_heads=2), {"num_heads": (1, 2)}),
        ("hiera", HIERA, dict(drop_path_rate=0.5, head_dropout=0.5, input_size=(8, 64, 64)), {}),
    ],
)
def test_another_function_of_the_same_tensors(tmp_path, family, trained, change, told):
    file = file_of(tmp_path, NAMES[family], trained)
    model = create_model(NAMES[family], **{**trained, **change})
    assert load_weights(model, file, strict=False).otherwise == told
    if not told:
        load_weights(model, file)
        return
    ((key, (was, here)),) = told.items()
    with pytest.raises(ValueError) as error:
        load_weights(model, file)
    assert f"trained with {key}={was!r}, not {here!r}" in str(error.value)


@pytest.mark.parametrize(
    "given, change, told",
    [
        (dict(masking="tokens"), {}, {"separate": (False, True)}),
        (dict(masking="tokens"), dict(separate=False), {}),
        (dict(masking="separate"), {}, {}),
        (dict(), dict(step="e"), {"step": ("c", "e")}),
    ],
)
def test_fine_tuning_as_another_function_is_told(tmp_path, given, change, told):
    """It may be meant, so it is done; the log says it."""
    file = file_of(tmp_path, f"mae_{NAMES['mvit']}", {**MVIT, **DECODER, **given})
    report = load_weights(create_model(NAMES["mvit"], **{**MVIT, **change}), file, strict=False)
    assert report.otherwise == told and ("WARNING: trained with" in str(report)) == bool(told)


def test_testing_as_another_function_is_refused(tmp_path, shapes, tool):
    file = file_of(tmp_path, NAMES["mvit"], {**MVIT, "input_size": (8, 64, 64), "num_classes": 8})
    given = [
        "--cfg",
        "tests/configs/finetune.yaml",
        f"data.root={shapes}",
        "stages=[test]",
        f"test.weights={file}",
        f"model.name={NAMES['mvit']}",
        "model.embed_dim=16",
        "model.num_heads=1",
        "model.stages=[1,1,2,1]",
        "model.kv_stride=[1,4,4]",
        f"output={tmp_path}/run",
        "model.step=d",
    ]
    said = tool("tools/run_net.py", *given, check=2).stderr
    assert "trained with step='c', not 'd'" in said
