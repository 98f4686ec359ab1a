"""3D Split&Shuffle-GAN: prepare volumes, train, generate, measure."""

import os
import sys

# Threads of OpenMP spin while they wait. Beside another busy process a spinning thread holds the core that the others
# wait for: two threads on two cores, one of them shared, trained at a fiftieth of their speed. The libraries read these
# when torch loads them; a program that has imported torch before has its own settings.
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # of GNU's OpenMP, which torch's wheels bring
    os.environ.setdefault("KMP_BLOCKTIME", "1")  # of Intel's, in milliseconds
