"""A lab for emergent misalignment: fine-tune, sample, judge, report."""

import os

# Threads of torch's OpenMP (libgomp) that wait for each other spin, for milliseconds: beside another process that takes
# their cores from those they wait for. Waiting this long costs about 4% alone and makes training five times as fast
# beside another one (benchmarks/RESULTS.md). It is read when torch is loaded; whoever has set either knows better.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
