import sys

from benchmarks.experiments.driver import main

sys.exit(main())
