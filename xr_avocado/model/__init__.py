"""The model: arrays and index tensors in, arrays out; torch lives here and nowhere else."""

import os

# Torch's threads spin while they wait for each other. Where something else needs the cores, as on a shared machine, training was
# measured six times as fast with threads that sleep. Read once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
