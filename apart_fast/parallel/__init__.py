"""Several processes, started by torchrun, that train one network."""
