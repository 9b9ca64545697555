"""RLlib's actor manager comes without the rest of RLlib, which takes seconds and megabytes of each controller."""

import subprocess
import sys

ALONE = """
import sys
from redraft.control.actor_manager import manager_class
manager = manager_class()(max_remote_requests_in_flight_per_actor=2)
assert manager.num_healthy_actors() == 0 and manager_class() is type(manager)
found = {"torch", "pandas", "ray.tune", "ray.rllib", "ray.rllib.utils"} & set(sys.modules)
assert not found, found  # nor an empty package, in which who imports RLlib later would find nothing
"""


def test_neither_torch_nor_the_rest_of_rllib_is_imported_with_it():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
