"""Install mtunnel-tx; what is not said in pyproject.toml.

`package_dir` names the folder although it is the default one: it makes an editable install a plain path, without
which Twisted cannot find the plugin.

The native module is optional: where it cannot be compiled, everything runs in pure Python. It uses CPython's limited
API only, so that one wheel serves every version.
"""

from pathlib import Path

from setuptools import Extension, find_packages, setup

setup(
    package_dir={"": "."},
    packages=[*find_packages(include=["mtunnel_tx", "mtunnel_tx.*"]), "twisted.plugins"],
    ext_modules=[
        Extension(
            "mtunnel_tx.stream._batch",
            ["mtunnel_tx/stream/_batch.c"],
            extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra"],
            py_limited_api=True,
            optional=True,
        )
    ],
    data_files=[
        *(
            (f"share/man/man{section}", [str(page) for page in Path("man").glob(f"*.{section}")])
            for section in (1, 5, 8)
        ),
        ("share/bash-completion/completions", ["etc/completion/bash/mtunnel"]),
        ("share/fish/vendor_completions.d", ["etc/completion/fish/mtunnel.fish"]),
        ("share/zsh/site-functions", ["etc/completion/zsh/_mtunnel"]),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
