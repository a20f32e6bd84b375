"""What `apart-fast train`, `evaluate` and `demo` do with their settings, and what they print."""

import os

os.environ["MPLBACKEND"] = "agg"  # pictures go to files; matplotlib refuses to be imported with a name it does not know
