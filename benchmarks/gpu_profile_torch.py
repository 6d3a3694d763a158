"""Which operations the torch wing's training step spends its time in, as torch.profiler sees them."""

from __future__ import annotations

import torch_side
from gpu_groups import TINY, Scale, profiled
from gpu_part import parser, path_of
from torch.profiler import ProfilerActivity, _ExperimentalConfig, profile

from palm.parity.recording.recording import environment

STEPS = 3
ROWS = 40


def main() -> None:
    asked = parser(__doc__).parse_args()
    spec = profiled(TINY if asked.dry_run else Scale(), "torch")
    run = torch_side.prepare(spec)["run"]
    for _ in range(STEPS):  # compiles, warms up
        run()
    on_gpu = torch_side.DEVICE.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    plain = min(run()["seconds"] for _ in range(STEPS))
    # The trainer computes in a thread of its own, which the profiler does not watch unless it is told to.
    config = _ExperimentalConfig(profile_all_threads=True)
    with profile(activities=activities, experimental_config=config, acc_events=True) as found:
        for _ in range(STEPS):
            run()
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    averages = found.key_averages()
    table = averages.table(sort_by=order, row_limit=ROWS, max_name_column_width=70)
    head = f"{asked.device}, {environment()}\n{spec}\n{plain * 1e3:.2f} ms a step without the profiler"
    path_of(asked.out, "profile_torch", asked.device, "txt").write_text(
        f"{head}; {STEPS} steps with it:\n\n{table}\n", encoding="utf-8"
    )
    print(f"{head.splitlines()[-1]}\n{table[:3000]}")
    if not any(getattr(event, order) for event in averages):
        raise SystemExit("the profile must hold times of operations; got none.")


if __name__ == "__main__":
    main()
