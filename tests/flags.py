"""What XLA is told wherever tests compile: a test's time is mostly compiling, for programs that then run once."""

from importlib.metadata import version

FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if version("jax").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # Later versions of JAX know no other way.


def flags(devices: int) -> str:
    """The environment variable XLA_FLAGS for a process with so many simulated devices."""
    return " ".join([f"--xla_force_host_platform_device_count={devices}", *FLAGS])
