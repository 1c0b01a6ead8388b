"""Weight files, ours and the published ones: read, and loaded with nothing dropped silently.

Ours are safetensors, with one metadata entry `hiera_video` that holds JSON: the model's name and
constructor arguments, class names, mean, std. The published ones are pickles `{"model_state":
...}`, read with `weights_only=True`.
"""

import difflib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hiera_video.models.huggingface import described, hub_folder, official_names
from hiera_video.models.layouts import our_names
from hiera_video.models.onnx_model import SUFFIX as ONNX_SUFFIX
from hiera_video.models.published import nearest, published
from hiera_video.models.resize import fit_to_model
from hiera_video.models.untold import computed_otherwise
from hiera_video.system.files import local

METADATA_KEY = "hiera_video"
# Keys under which training codes keep the weights.
WRAPPERS = ("model_state", "model", "state_dict", "module")
HEAD_BIASES = ("head.projection.bias", "head.fc.bias")  # official, and timm's
OTHER_HEAD_BIASES = ("classifier.bias", "head.bias", "head.1.bias", "head.proj.bias")  # layouts.py
# Prefixes left by DataParallel, torch.compile and encoders inside other models.
PREFIXES = ("module.", "_orig_mod.", "encoder.", "model.")
OUTCOMES = ("loaded", "interpolated", "inflated", "re-initialised", "unused")
CARRIED = ("loaded", "interpolated", "inflated")


@dataclass
class LoadReport:
    """What became of every parameter of the model and of every tensor of the file."""

    source: str
    outcomes: dict[str, str] = field(default_factory=dict)  # parameter -> one of OUTCOMES
    share_loaded: float = 0.0  # of the model's parameters by number of elements: all CARRIED ones
    # Argument -> (where the weights were trained, here): another function of the same tensors.
    otherwise: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def names(self, outcome: str) -> list[str]:
        return [name for name, o in self.outcomes.items() if o == outcome]

    def __str__(self) -> str:
        count = Counter(self.outcomes.values())
        parts = ", ".join(f"{count[o]} {o}" for o in OUTCOMES if count[o])
        share = f"{self.share_loaded:.1%} of the parameters"
        lines = [f"weights from {self.source}: {share}; tensors: {parts}"]
        for outcome in OUTCOMES[1:]:
            if count[outcome]:
                lines.append(f"  {outcome}: {', '.join(_by_module(self.names(outcome)))}")
        if self.otherwise:
            lines.append(f"  WARNING: {_trained_with(self.otherwise)}")
        return "\n".join(lines)


def weights_file(path: str | Path) -> Path:
    """The weight file that `path` means. Raises ValueError.

    That is the file itself, a step folder's, or the newest of a run folder: the one that `latest`
    points to now, whatever it points to when the file is read. A published name (published.py)
    is downloaded once; a file or folder of that name comes first.
    """
    named = published(path)
    if named is not None:
        return named.fetched()
    on_hub = hub_folder(path)
    try:
        path = Path(local(path)) if on_hub is None else on_hub
    except OSError as e:
        raise ValueError(str(e)) from e
    newest = (path / "checkpoints" / "latest").resolve()
    for candidate in (path, path / "model.safetensors", newest / "model.safetensors"):
        if candidate.is_file():
            return candidate
    raise ValueError(
        f"no weights at {path}: neither a file, nor a step folder, nor a run folder with "
        f"checkpoints/latest, nor a Hugging Face folder with model.safetensors (of the hub: "
        f"hf://OWNER/NAME), nor a published name{nearest(str(path))}"
    )


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata) of a weight file, ours or a published one. Raises ValueError."""
    file = weights_file(path)
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as f:
                metadata = json.loads((f.metadata() or {}).get(METADATA_KEY, "{}"))
                state = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        except SafetensorError as e:
            raise ValueError(f"{file} is not a safetensors file: {e}") from e
        state = _unwrap(state, str(file))
        if metadata:
            return state, metadata
        metadata, is_renamed = described(file.parent)
        return official_names(state) if is_renamed else state, metadata
    if file.suffix == ONNX_SUFFIX:
        raise ValueError(f"{file}: an ONNX file is for predict, extract-features and load alone")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as e:  # of bytes that are no pickle, the unpickler may make anything
        raise ValueError(
            f"{file} is no weight file: neither safetensors nor a pickle of nothing but tensors"
        ) from e
    named = published(path)
    return _unwrap(state, str(file)), {} if named is None else named.metadata()


def is_autoencoder(state: Mapping[str, Tensor]) -> bool:
    """Whether it is the state dict of a masked autoencoder."""
    return any(name.startswith(("decoder_", "decoder.")) for name in state)


def classes_of(state: Mapping[str, Tensor]) -> int | None:
    """How many classes the head of a Hiera's state dict has; None without one."""
    biases = [
        tensor
        for name, tensor in state.items()
        if name.endswith(HEAD_BIASES) or name in OTHER_HEAD_BIASES
    ]
    return len(biases[0]) if biases else None


def metadata_entry(metadata: Mapping[str, Any]) -> dict[str, str]:
    """What safetensors keeps: one entry that holds JSON, since the order of several is not kept."""
    return {METADATA_KEY: json.dumps(metadata, sort_keys=True)}


def load_weights(
    model: nn.Module, weights: str | Path | Mapping[str, Tensor], strict: bool = True
) -> LoadReport:
    """Loads weights in the official layout or ours into `model`.

    weights: a file, step folder, run folder or state dict.

    strict: raises ValueError if a tensor stays unused or a parameter is re-initialised; the message
    lists both. Also if the model computes another function of the same tensors, as far as the file
    tells (untold.py); not strict, the report says so. Position tables of another size are
    interpolated, image weights are inflated to video; both are reported and do not count.

    Not strict: two known pairs are allowed. A masked autoencoder's file in a classifier: its
    decoder stays unused, its `encoder_norm` becomes `norm`. Another class count: the head is
    re-initialised. Anything else raises ValueError.
    """
    if isinstance(weights, (str, Path)):
        source = str(weights)
        state, metadata = read_weights(weights)
    else:
        source = "a state dict"
        state = _unwrap(weights, "the state dict")
        metadata = {}
    own = model.state_dict()
    state = _rename(state, own)
    try:
        resized = fit_to_model(state, model, metadata)
    except ValueError as e:
        raise ValueError(f"{source} does not fit this model: {e}") from e
    head = getattr(model, "head_prefix", "head.")
    mismatched = {n for n in own if n in state and state[n].shape != own[n].shape}
    report = LoadReport(source)
    for name in own:
        fits = name in state and name not in mismatched
        # A head is one thing: where its weight does not fit, its bias is of no use either.
        if name.startswith(head) and any(n.startswith(head) for n in mismatched):
            fits = False
        report.outcomes[name] = resized.get(name, "loaded") if fits else "re-initialised"
    for name in state:
        report.outcomes.setdefault(name, "unused")
    loaded = [name for name, outcome in report.outcomes.items() if outcome in CARRIED]
    report.share_loaded = sum(own[n].numel() for n in loaded) / sum(t.numel() for t in own.values())

    wrong = _what_does_not_fit(report, state, own, allowed_head=None if strict else head)
    if wrong:
        name = metadata.get("model", {}).get("name")
        whose = f"; it is of {name}" if name else ""
        raise ValueError(f"{source} does not fit this model{whose}{wrong}")
    report.otherwise = computed_otherwise(model, metadata.get("model", {}))
    if report.otherwise and strict:
        raise ValueError(f"{source}: {_trained_with(report.otherwise)}")
    broken = [n for n in loaded if not _is_sound(state[n], own[n])]
    if broken:
        names = ", ".join(_by_module(broken))
        raise ValueError(f"{source} is damaged: not numbers, or not finite: {names}")
    with torch.no_grad():
        for name in loaded:
            own[name].copy_(state[name])
    return report


def _what_does_not_fit(
    report: LoadReport,
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    *,
    allowed_head: str | None,
) -> str:
    """For a message; empty if all is well.

    allowed_head: prefix of a head that may be re-initialised; a decoder may then stay unused.
    """
    reinitialised = report.names("re-initialised")
    unused = report.names("unused")
    if allowed_head is not None:
        reinitialised = [n for n in reinitialised if not n.startswith(allowed_head)]
        unused = [n for n in unused if not _belongs_to_decoder(n)]
    if not reinitialised and not unused:
        return ""
    mismatched = [n for n in own if n in state and state[n].shape != own[n].shape]
    wrong = ""
    if reinitialised:
        wrong += f"; re-initialised: {', '.join(_by_module(reinitialised))}"
    if unused:
        wrong += f"; unused: {', '.join(_by_module(unused))}"
    sizes = []
    for name in sorted(mismatched)[:3]:
        sizes.append(f"{name} is {list(state[name].shape)}, needed {list(own[name].shape)}")
    if sizes:
        wrong += f" ({'; '.join(sizes)})"
    return wrong + _nearest(unused, [n for n in reinitialised if n not in mismatched])


def _trained_with(otherwise: Mapping[str, tuple[Any, Any]]) -> str:
    given = ", ".join(f"{name}={was!r}, not {is_!r}" for name, (was, is_) in otherwise.items())
    return f"trained with {given}: every tensor fits this model, and means something else in it"


def _unwrap(state: Any, source: str) -> dict[str, Tensor]:
    for key in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(v, Tensor) for v in state.values())
    ):
        raise ValueError(
            f"{source} holds no state dict: a dict of tensors, bare or under {', '.join(WRAPPERS)}"
        )
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state)


def _rename(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the file -> names of the model, for the pairs that differ by a rule."""
    if all(name.startswith("net.") for name in own):  # PyTorchVideo's, behind our interface
        is_bare = not any(name.startswith("net.") for name in state)
        return {f"net.{name}": tensor for name, tensor in state.items()} if is_bare else state
    renamed = our_names(state, own)
    if "norm.weight" in own and "norm.weight" not in renamed:
        for name in [name for name in renamed if name.startswith("encoder_norm.")]:
            # A masked autoencoder into a classifier.
            renamed["norm." + name.removeprefix("encoder_norm.")] = renamed.pop(name)
    return renamed


def _is_sound(tensor: Tensor, own: Tensor) -> bool:
    # Of the other kind: quantised, or not this tensor at all.
    if tensor.is_floating_point() != own.is_floating_point():
        return False
    return bool(tensor.sum(dtype=torch.float64).isfinite())


def _belongs_to_decoder(name: str) -> bool:
    return name.startswith(("decoder_", "multi_scale_fusion_heads.")) or name == "mask_token"


def _nearest(unused: list[str], wanted: list[str]) -> str:
    """Pairs of names that look meant for each other."""
    pairs = []
    for name in unused[:3]:
        near = difflib.get_close_matches(name, wanted, n=1, cutoff=0.8)
        pairs += [f"{name} looks like {near[0]}"] if near else []
    return f"; {', '.join(pairs)}" if pairs else ""


def _by_module(names: list[str], limit: int = 6) -> list[str]:
    """Names without `.weight`, `.bias`; the first `limit`, then how many more."""
    modules = list(dict.fromkeys(n.removesuffix(".weight").removesuffix(".bias") for n in names))
    return modules[:limit] + ([f"and {len(modules) - limit} more"] if len(modules) > limit else [])
