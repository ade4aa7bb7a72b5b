"""What pyproject.toml cannot say: the shipped model, of weights/, goes into the package too."""

from setuptools import find_packages, setup

MODEL = "minilm_inf.tiny_llama"  # where terminal/options.py looks for it

setup(
    packages=[*find_packages(include=["minilm_inf*"]), MODEL],
    package_dir={MODEL: "weights/tiny-llama"},
    package_data={MODEL: ["*"]},
)
