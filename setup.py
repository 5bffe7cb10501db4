"""Two folders stand at the top on purpose, as what this project plugs into diffusers; they are installed inside the
package.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = "0.1.0"

# Lower bounds are what the tests ran with, or the oldest version whose interface is used.
INSTALL = [
    "torch>=2.6",
    "torchvision>=0.21",
    "diffusers>=0.42",
    "transformers>=5.0",
    "accelerate>=1.10",
    "safetensors>=0.8",
    "huggingface-hub>=1.32",
    "peft>=0.18",
    "numpy>=2.0",
    "numba>=0.61",
    "scipy>=1.15",
    "shapely>=2.1",  # with GEOS 3.12 or later; its wheels bring 3.13
    "pillow>=11.0",
    "pyyaml>=6.0",
    "tqdm>=4.66",
    "wrapt>=1.16",
    'isal>=1.7; platform_machine in "x86_64 AMD64 aarch64 arm64"',  # PNGs inflated in a third of the time
]
EXTRAS = {
    "train": [
        "datasets>=4.0",
        "timm>=1.0",
        "lpips>=0.1.4",
        "torchmetrics>=1.6",
        "psutil>=5.9",
        "tensorboard>=2.18",
        "matplotlib>=3.9",
        "scikit-image>=0.25",
        "opencv-python-headless>=4.10",
    ],
    "simulate": ["sionna-rt>=2.0", "pyproj>=3.6"],
    "demo": ["gradio>=6.0", "matplotlib>=3.9", "rasterio>=1.4"],
}
EXTRAS["dev"] = [
    *EXTRAS["train"],
    *EXTRAS["simulate"],
    *EXTRAS["demo"],
    "hypothesis>=6.100",
    "ipykernel>=6.29",
    "nbclient>=0.10",
    "playwright>=1.50",
    "pytest>=8.0",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff==0.17.6",
    "torch-fidelity>=0.4",
]

setup(
    name="radiodiff_diffusers",
    version=VERSION,
    description="Radio maps by diffusion: RadioDiff, VA-VAE and LightningDiT as plugins of diffusers",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["radiodiff_diffusers", "radiodiff_diffusers.*"]),
        "radiodiff_diffusers.pipelines",
        "radiodiff_diffusers.schedulers",
    ],
    package_dir={
        "radiodiff_diffusers.pipelines": "pipelines",
        "radiodiff_diffusers.schedulers": "schedulers",
    },
    package_data={
        "radiodiff_diffusers": ["default_model/*", "default_model/*/*", "ray_traced_adapter/*", "ray_traced_model/*"]
    },
    install_requires=INSTALL,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["radiodiff=radiodiff_diffusers.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering",
    ],
)
