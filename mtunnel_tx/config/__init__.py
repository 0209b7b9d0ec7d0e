"""Reads `mtunnel.toml` into frozen Settings. Every key has a default, and every value is checked.

This package creates no files; `make_private_directory` is for callers that do.
"""

from mtunnel_tx.config.host import (
    Host,
    check_private_directory,
    default_file,
    is_there,
    make_private_directory,
    this_host,
)
from mtunnel_tx.config.keys import KEYS, Key
from mtunnel_tx.config.reader import find_tls, load_settings
from mtunnel_tx.config.settings import (
    DEFAULT_PORT,
    LONGEST_RUNTIME_DIR,
    LONGEST_SOCKET_PATH,
    ClusterNode,
    Commands,
    ConfigError,
    Forward,
    Limits,
    Notify,
    Page,
    Settings,
    Tls,
)

__all__ = [
    "DEFAULT_PORT",
    "KEYS",
    "LONGEST_RUNTIME_DIR",
    "LONGEST_SOCKET_PATH",
    "ClusterNode",
    "Commands",
    "ConfigError",
    "Forward",
    "Host",
    "Key",
    "Limits",
    "Notify",
    "Page",
    "Settings",
    "Tls",
    "check_private_directory",
    "default_file",
    "find_tls",
    "is_there",
    "load_settings",
    "make_private_directory",
    "this_host",
]
