import os

# One thread a process: tiny models are faster so, processes run side by side, and forked children cannot hang in a pool.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import settings

settings.register_profile("tamis", deadline=None, max_examples=50)
settings.load_profile("tamis")


def pytest_terminal_summary(terminalreporter):
    """Say how many made-up inputs the fuzz tests have tried, by family."""
    reports = [r for found in terminalreporter.stats.values() for r in found if getattr(r, "when", "") == "call"]
    families = [value for r in reports for name, value in r.user_properties if name == "fuzzed"]
    if families:
        told = [f"{name.replace('_', ' ')} {sum(ends.values())} {ends}" for name, ends in families]
        total = sum(sum(ends.values()) for _, ends in families)
        terminalreporter.write_line(f"fuzzed inputs: {total}; " + "; ".join(told))
