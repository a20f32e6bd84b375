"""Packages: `apart_fast` as it lies, and the top-level folders `kernels` and `loaders` as parts of it."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["apart_fast", "apart_fast.*"]),
        *(f"apart_fast.{name}" for name in find_packages(include=["kernels", "kernels.*", "loaders", "loaders.*"])),
    ],
    package_dir={"apart_fast.kernels": "kernels", "apart_fast.loaders": "loaders"},
    package_data={"": ["*.json", "*.j2", "*.css", "py.typed"]},
)
