"""The facts that a figure means nothing without."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path


def cpu_model():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def cores():
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def revision():
    command = ["git", "describe", "--always", "--dirty"]
    folder = Path(__file__).parent
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return process.stdout.strip() or "unknown"


def load():
    """Processes that wanted to run in the last minute: figures taken beside others are void."""
    return round(os.getloadavg()[0], 2)


def facts(threads, mode, load, contenders):
    """load: before the run; contenders: by name, what their workers reported."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "threads": threads,
        "mode": mode,
        "load": load,
        "python": platform.python_version(),
        "torch": version("torch"),
        "revision": revision(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "contenders": contenders,
    }
