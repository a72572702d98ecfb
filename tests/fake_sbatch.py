"""What Slurm's ``sbatch`` does, as far as examples/slurm needs it: runs the tasks, one by one.

An array's tasks run at once; a job that depends on it runs where all of them ended with 0.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--parsable", action="store_true", required=True)
parser.add_argument("--array")
parser.add_argument("--dependency")
parser.add_argument("script")
asked = parser.parse_args()

done = Path("jobs")
done.mkdir(exist_ok=True)
number = 100 + len(list(done.iterdir()))
if asked.dependency is not None:
    kind, _, other = asked.dependency.partition(":")
    assert kind == "afterok"
    assert (done / other).read_text() == "0"
first, _, last = (asked.array or "0-0").partition("-")
codes = []
for task in range(int(first), int(last) + 1):
    variables = {"SLURM_ARRAY_TASK_ID": f"{task}", "SLURM_ARRAY_TASK_COUNT": last}
    environment = {**os.environ, **(variables if asked.array else {})}
    ended = subprocess.run(["bash", asked.script], stdout=sys.stderr, env=environment, check=False)
    codes.append(ended.returncode)
(done / f"{number}").write_text(f"{max(codes)}")
print(f"{number};cluster")
