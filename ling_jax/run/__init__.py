"""A run in its workdir: the loop around a pure step, with logs, evaluations, saves and signals."""
