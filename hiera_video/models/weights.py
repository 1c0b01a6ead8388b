"""Weight files: reading ours and the published ones, and loading them into a model with nothing
dropped silently.

Ours are safetensors, with one metadata entry `hiera_video` that holds JSON: the model's name and
constructor arguments, class names, mean, std. The published ones are pickles `{"model_state":
...}`, read with `weights_only=True`.
"""

import difflib
import json
import pickle
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hiera_video.models.resize import fit_to_model
from hiera_video.system.files import local

METADATA_KEY = "hiera_video"
# keys under which training codes keep the weights
WRAPPERS = ("model_state", "model", "state_dict", "module")
HEAD_BIASES = ("head.projection.bias", "head.fc.bias")  # official and timm
# left by DataParallel, torch.compile and encoders inside other models
PREFIXES = ("module.", "_orig_mod.", "encoder.")
# timm's names of the image models -> official
TIMM = {"head.norm.": "norm.", "head.fc.": "head.projection."}
OUTCOMES = ("loaded", "interpolated", "inflated", "re-initialised", "unused")
CARRIED = ("loaded", "interpolated", "inflated")


@dataclass
class LoadReport:
    """What became of every parameter of the model and of every tensor of the file."""

    source: str
    outcomes: dict[str, str] = field(default_factory=dict)  # parameter -> one of OUTCOMES
    # of the model's parameters, by number of elements: loaded, interpolated or inflated
    share_loaded: float = 0.0

    def names(self, outcome: str) -> list[str]:
        return [name for name, o in self.outcomes.items() if o == outcome]

    def __str__(self) -> str:
        count = Counter(self.outcomes.values())
        parts = [f"{count[o]} {o}" for o in OUTCOMES if count[o]]
        lines = [
            f"weights from {self.source}: {self.share_loaded:.1%} of the parameters; tensors: "
            f"{', '.join(parts)}"
        ]
        for outcome in OUTCOMES[1:]:
            if count[outcome]:
                lines.append(f"  {outcome}: {', '.join(_by_module(self.names(outcome)))}")
        return "\n".join(lines)


def weights_file(path: str | Path) -> Path:
    """The weight file that `path` means: itself, a step folder's, or a run folder's newest. Raises
    ValueError.
    """
    try:
        path = Path(local(path))
    except OSError as e:
        raise ValueError(str(e)) from e
    for candidate in (
        path,
        path / "model.safetensors",
        path / "checkpoints" / "latest" / "model.safetensors",
    ):
        if candidate.is_file():
            return candidate
    raise ValueError(
        f"no weights at {path}: neither a file, nor a step folder, nor a run folder with "
        "checkpoints/latest"
    )


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata) of a weight file, ours or a published one. Raises ValueError for what is
    neither.
    """
    file = weights_file(path)
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as f:
                metadata = json.loads((f.metadata() or {}).get(METADATA_KEY, "{}"))
                return {name: f.get_tensor(name) for name in f.keys()}, metadata  # noqa: SIM118
        except SafetensorError as e:
            raise ValueError(f"{file} is not a safetensors file: {e}") from e
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as e:
        raise ValueError(
            f"{file} is no weight file: neither safetensors nor a pickle of nothing but tensors"
        ) from e
    return _unwrap(state, str(file)), {}


def classes_of(state: Mapping[str, Tensor]) -> int | None:
    """How many classes the head of a Hiera's state dict has; None without one."""
    biases = [t for name, t in state.items() if name.endswith(HEAD_BIASES)]
    return len(biases[0]) if biases else None


def metadata_entry(metadata: Mapping[str, Any]) -> dict[str, str]:
    """What safetensors keeps: one entry that holds JSON, since the order of several is not kept."""
    return {METADATA_KEY: json.dumps(metadata, sort_keys=True)}


def load_weights(
    model: nn.Module, weights: str | Path | Mapping[str, Tensor], strict: bool = True
) -> LoadReport:
    """Loads a file, step folder, run folder or state dict, in the official layout or ours, into
    `model`.

    strict: ValueError if a tensor stays unused or a parameter is re-initialised; the message lists
    both. Position tables of another input size or frame count are interpolated, image weights are
    inflated to video, and both are reported; neither counts against `strict`. Not strict: allowed
    are the known pairs, a masked autoencoder's file in a classifier (its decoder stays unused, its
    `encoder_norm` becomes `norm`) and another class count (the head is re-initialised). Anything
    else raises ValueError.
    """
    if isinstance(weights, (str, Path)):
        source = str(weights)
        (state, metadata) = read_weights(weights)
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

    report = LoadReport(source)
    mismatched = {n for n in own if n in state and state[n].shape != own[n].shape}
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

    reinitialised = report.names("re-initialised")
    unused = report.names("unused")
    if not strict:
        reinitialised = [n for n in reinitialised if not n.startswith(head)]
        unused = [n for n in unused if not _belongs_to_decoder(n)]
    if reinitialised or unused:
        sizes = [
            f"{n} is {list(state[n].shape)}, needed {list(own[n].shape)}"
            for n in sorted(mismatched)[:3]
        ]
        raise ValueError(
            f"{source} does not fit this model"
            + (f"; re-initialised: {', '.join(_by_module(reinitialised))}" if reinitialised else "")
            + (f"; unused: {', '.join(_by_module(unused))}" if unused else "")
            + (f" ({'; '.join(sizes)})" if sizes else "")
            + _nearest(unused, [n for n in reinitialised if n not in mismatched])
        )
    broken = [n for n in loaded if not _is_sound(state[n], own[n])]
    if broken:
        raise ValueError(
            f"{source} is damaged: not numbers, or not finite: {', '.join(_by_module(broken))}"
        )
    with torch.no_grad():
        for name in loaded:
            own[name].copy_(state[name])
    return report


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
    # a masked autoencoder into a classifier
    if "decoder_pos_embed" in state and "norm.weight" in own:
        state = {name.replace("encoder_norm.", "norm.") if name.startswith("encoder_norm.") else name: t
                 for name, t in state.items()}  # fmt: skip
    if "norm.weight" in own and "head.norm.weight" in state:
        for theirs, ours in TIMM.items():
            state = {
                ours + n.removeprefix(theirs) if n.startswith(theirs) else n: t
                for n, t in state.items()
            }
    if all(name.startswith("net.") for name in own) and not any(
        name.startswith("net.") for name in state
    ):
        state = {f"net.{name}": t for name, t in state.items()}  # PyTorchVideo's own files
    return state


def _is_sound(tensor: Tensor, own: Tensor) -> bool:
    # quantised, or not this tensor at all
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


def _by_module(names: list[str], limit: int = 12) -> list[str]:
    """Names without `.weight`, `.bias`; the first `limit`, then how many more."""
    modules = list(dict.fromkeys(n.removesuffix(".weight").removesuffix(".bias") for n in names))
    return modules[:limit] + ([f"and {len(modules) - limit} more"] if len(modules) > limit else [])
