import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "hiera_video/__init__.py").read_text())[1]
TEST = [
    "hiera-transformer>=0.1.4",
    "pytest>=8",
    "pytest-timeout>=2",
    "pytest-xdist>=3.5",
    "ruff>=0.6",
]

setup(
    name="hiera_video",
    version=VERSION,
    description="Pretrain, fine-tune, test and use 3D Hiera video models",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["hiera_video", "hiera_video.*"]),
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "pytorchvideo>=0.1.5",
        # Wheels exist for these machines only; elsewhere everything is decoded with PyAV.
        'decord>=0.6.0; (sys_platform == "linux" or sys_platform == "win32") and platform_machine in "x86_64 AMD64"',
        "av>=14",
        "fvcore>=0.1.5",
        "iopath>=0.1.10",
        "numpy>=1.26",
        "omegaconf>=2.4",
        "safetensors>=0.4.3",
        "submitit>=1.5",
        "tensorboard>=2.14",
        "tqdm>=4.64",
    ],
    extras_require={"torchcodec": ["torchcodec>=0.7"], "test": TEST},
)
