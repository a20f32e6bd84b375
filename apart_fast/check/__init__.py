"""`apart-fast check`: is everything right on this machine, how quick is it, and which flags suit it."""
