#!/usr/bin/env python3
"""Peak memory of each rank, in MB: python3 benches/ranks/memory.py MLX_LM SIZE [ARGUMENTS of mlx_lm …]

Runs `MLX_LM launch -n SIZE -- ARGUMENTS`, and reads what the kernel says of each rank (VmHWM) until it has ended.
"""

import json
import os
import subprocess
import sys
import time

program, size, arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
launcher = subprocess.Popen([program, "launch", "-n", str(size), "--", *arguments], stdout=subprocess.DEVNULL)
peaks = {}
while launcher.poll() is None:
    children = f"/proc/{launcher.pid}/task/{launcher.pid}/children"
    for rank, pid in enumerate(open(children).read().split() if os.path.exists(children) else []):
        try:
            status = open(f"/proc/{pid}/status").read()
        except OSError:
            continue
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                peaks[pid] = max(peaks.get(pid, 0), int(line.split()[1]) / 1000)
    time.sleep(0.01)
print(json.dumps({"ranks": size, "peak_mb": [round(peak) for peak in peaks.values()], "exit_code": launcher.returncode}))
