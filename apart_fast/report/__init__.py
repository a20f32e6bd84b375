"""A run, or several side by side, as one HTML file, and the pictures of a run."""


def __getattr__(name: str):
    """For callers that are about to import from `settings` and `write` themselves."""
    if name in ("ReportConfig", "run", "write_report"):
        from apart_fast.report import write

        return getattr(write, name)
    raise AttributeError(name)
