"""Python in a process of its own, which has imported nothing yet: for what depends on the order of imports."""

import json
import subprocess
import sys


def run_fresh(script, environment=None, *words, timeout=240):
    """What the script said in its last line, as JSON; the test fails with the script's complaint if it did."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"the fresh process failed:\n{done.stderr[-4000:]}"
    return json.loads(done.stdout.splitlines()[-1])
