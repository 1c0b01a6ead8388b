"""ONNX, torch.export and AOTInductor: a graph written to a file, and run from it.

Every file takes any number of clips, and says of itself what our weight files say (the model, its
classes, its clip format), but for AOTInductor's, which keeps no such thing.
"""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiera_video.export.graph import INPUT, Graph
from hiera_video.models.onnx_model import METADATA_KEY, OnnxModel
from hiera_video.system.files import written_whole

Run = Callable[[Tensor], tuple[Tensor, ...]]  # a clip as the graph takes it -> what it gives
MOST_CLIPS = 4096  # in one call
# Of ONNX. From 23 on attention is one operator, which onnxruntime computes without two transposes.
OPSET = 23
OLDEST_OPSET = 18  # of the exporter


def write_onnx(
    graph: Graph, example: Tensor, file: Path, metadata: dict[str, Any], *, opset: int = OPSET
) -> None:
    """example: two clips. Raises ValueError where onnx is not installed."""
    with quiet():
        try:
            program: Any = torch.onnx.export(
                graph.for_onnx().eval(),
                (example,),
                dynamo=True,
                dynamic_shapes=({0: _batch()},),
                input_names=[INPUT],
                output_names=graph.names,
                opset_version=opset,
                custom_translation_table=_translations(opset),
                verbose=False,
            )
        except ModuleNotFoundError as e:
            raise ValueError(f"--to onnx needs {e.name}: pip install 'hiera_video[onnx]'") from e
        program.model.metadata_props[METADATA_KEY] = json.dumps(metadata)
        program.save(str(file))


def _translations(opset: int) -> dict[Any, Callable[..., Any]]:
    """Attention on tokens whose heads lie side by side, as they come from a product.

    The exporter's own has the heads apart, and copies for that.
    """
    if opset < OPSET:
        return {}
    from onnxscript import opset23

    op: Any = opset23

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        _, heads, tokens, dim = query.shape  # [R, H, N, D]

        def together(part: Any) -> Any:  # [R, N, H * D]
            size = [-1, part.shape[2], heads * dim]
            return op.Reshape(op.Transpose(part, perm=[0, 2, 1, 3]), op.Constant(value_ints=size))

        parts = map(together, (query, key, value))
        out, *_ = op.Attention(*parts, q_num_heads=heads, kv_num_heads=heads)
        apart = op.Reshape(out, op.Constant(value_ints=[-1, tokens, heads, dim]))
        return op.Transpose(apart, perm=[0, 2, 1, 3])

    return {torch.ops.aten.scaled_dot_product_attention.default: attention}


def to_int8(source: Path, file: Path) -> None:
    """Weights of products as int8, inputs of products quantised as they come."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet(), written_whole(file) as temporary:
        quantize_dynamic(
            source, temporary, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"]
        )
        model = onnx.load(str(temporary))
        known = {prop.key: prop.value for prop in onnx.load(str(source)).metadata_props}
        onnx.helper.set_model_props(model, known)
        onnx.save(model, str(temporary))


def open_onnx(file: Path) -> Run:
    return OnnxModel(file).outputs_of


def write_pt2(graph: Graph, example: Tensor, file: Path, metadata: dict[str, Any]) -> None:
    """example: two clips."""
    extra = {f"{METADATA_KEY}.json": json.dumps(metadata)}
    with quiet():
        program = _program(graph, example)
        program.example_inputs = None  # which would be written, too
        torch.export.save(program, file, extra_files=extra)


def open_pt2(file: Path) -> Run:
    return torch.export.load(file).module()


def write_aoti(graph: Graph, example: Tensor, file: Path, metadata: dict[str, Any]) -> None:
    """Compiled for this kind of processor. example: two clips. Raises ValueError."""
    with quiet():
        try:
            torch._inductor.aoti_compile_and_package(
                _program(graph, example), package_path=str(file)
            )
        except Exception as e:  # no compiler, or one that fails
            reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise ValueError(f"--to aoti: it does not compile here: {reason}") from e


def open_aoti(file: Path) -> Run:
    loaded: Any = torch._inductor.aoti_load_package(str(file))

    def run(clip: Tensor) -> tuple[Tensor, ...]:
        return tuple(loaded(clip))

    return run


def _program(graph: Graph, example: Tensor) -> Any:
    return torch.export.export(graph, (example,), dynamic_shapes=({0: _batch()},))


def _batch() -> Any:
    return torch.export.Dim("batch", min=1, max=MOST_CLIPS)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters speak of themselves at length."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(nowhere):
                yield
    finally:
        logging.disable(level)
