"""Install mtunnel-tx; what is not said in pyproject.toml.

`package_dir` names the folder although it is the default one: it makes an editable install a plain path, without
which Twisted cannot find the plugin.
"""

from setuptools import find_packages, setup

setup(
    package_dir={"": "."},
    packages=[*find_packages(include=["mtunnel_tx", "mtunnel_tx.*"]), "twisted.plugins"],
)
