"""Two trainings: how far apart they drift.

from palm.parity.drift import Trajectory, drift

mine = Trajectory.record(torch_step, (model, optimizer), batches, label="mine")
port = Trajectory.record(jax_step, (params, state), batches, label="port", weights=by_name)
print(drift(mine, port).verdict)
"""

from palm.parity.drift.drift import Drift, drift
from palm.parity.drift.trajectory import Trajectory

__all__ = ["Drift", "Trajectory", "drift"]
