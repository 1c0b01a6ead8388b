"""The config of a run: every key with its default and its checks, and how files are read.

    config = load_config("configs/K400/hiera_b_16x4.yaml", ["data.root=/k400", "train.epochs=3"])

The ground floor: a tree of frozen dataclasses that imports nothing heavy. build.py turns it into
objects; only stages hold a whole one.
"""

from hiera_video.config.load import (
    MAY_CHANGE,
    MAY_CHANGE_BEFORE_TEST,
    changed_keys,
    changes,
    load_config,
    to_yaml,
    valid_keys,
)
from hiera_video.config.sections import (
    Config,
    DataConfig,
    FeaturesConfig,
    InitConfig,
    ModelConfig,
    TestConfig,
)
from hiera_video.config.training import ClassifyConfig, MAEConfig, OptimConfig, TrainConfig

__all__ = [
    "MAY_CHANGE",
    "MAY_CHANGE_BEFORE_TEST",
    "ClassifyConfig",
    "Config",
    "DataConfig",
    "FeaturesConfig",
    "InitConfig",
    "MAEConfig",
    "ModelConfig",
    "OptimConfig",
    "TestConfig",
    "TrainConfig",
    "changed_keys",
    "changes",
    "load_config",
    "to_yaml",
    "valid_keys",
]
