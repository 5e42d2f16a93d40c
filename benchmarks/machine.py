"""On what a figure of speed was measured: every benchmark prints it under its table."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def machine() -> str:
    """The processor by name, its cores and widest instructions, the load of others, and the versions that matter."""
    fields: dict[str, str] = {}
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text(encoding="utf-8").split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            fields[name.strip()] = value.strip()
    name = fields.get("model name") or platform.processor() or platform.machine()
    number = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "numpy"))
    return (
        f"Measured on {name}{number}, {os.cpu_count()} cores{load}, {torch.backends.cpu.get_cpu_capability()}; "
        f"Python {platform.python_version()}, {versions}."
    )
