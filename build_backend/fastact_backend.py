"""The build backend: setuptools', with the PyTorch of the environment that fastact is built for.

An isolated build would otherwise fetch the newest PyTorch, gigabytes of it, and make a wheel that
fails beside the one installed. So the folder that holds the installed one goes to the end of
sys.path, where the packages of the isolated environment still win. Where there is none, the build
requires a supported PyTorch like any other tool. In both cases the wheel's metadata ask for the
minor version that it was built against.
"""

import importlib.metadata
import os
import site
import sys
import tomllib
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import build_sdist, get_requires_for_build_sdist  # noqa: F401

LOWEST, BELOW = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["fastact"]["torch"]


def minor(version):
    return tuple(map(int, version.split(".")[:2]))


def folder_of_torch():
    """Where a supported PyTorch is installed, or None.

    Isolation hides these folders from sys.path, not the prefixes. VIRTUAL_ENV and the base serve
    front ends that run the build in a virtual environment of its own.
    """
    prefixes = [sys.prefix, os.environ.get("VIRTUAL_ENV"), sys.base_prefix]
    folders = [*site.getsitepackages(filter(None, prefixes)), site.getusersitepackages()]
    for torch in importlib.metadata.distributions(name="torch", path=folders):
        if minor(LOWEST) <= minor(torch.version) < minor(BELOW):
            return str(torch.locate_file(""))
    return None


def requirements(config_settings=None):
    return [] if folder_of_torch() else [f"torch>={LOWEST},<{BELOW}"]


def with_torch(hook):
    def wrapped(*args, **kwargs):
        if (folder := folder_of_torch()) and folder not in sys.path:
            sys.path.append(folder)
        return hook(*args, **kwargs)

    return wrapped


get_requires_for_build_wheel = get_requires_for_build_editable = requirements
prepare_metadata_for_build_wheel = with_torch(build_meta.prepare_metadata_for_build_wheel)
prepare_metadata_for_build_editable = with_torch(build_meta.prepare_metadata_for_build_editable)
build_wheel = with_torch(build_meta.build_wheel)
build_editable = with_torch(build_meta.build_editable)
