"""The environment of a process in which a CPU pretends to be several devices."""

import os


def environment(devices):
    """This process's own, its flags included."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        ),
    }
