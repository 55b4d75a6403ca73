"""What has to be so before any test imports torch."""

import os

# OpenMP's threads wait without spinning: several processes of torch share few processors here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
