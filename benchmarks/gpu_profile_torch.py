"""Which operations the torch wing's training step spends its time in, as torch.profiler sees them."""

from __future__ import annotations

import torch_side
from gpu_groups import TINY, Scale, profiled
from gpu_part import parser, path_of
from torch.profiler import ProfilerActivity, profile

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
    with profile(activities=activities) as found:
        for _ in range(STEPS):
            run()
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    table = found.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=70)
    head = f"{asked.device}, {environment()}\n{spec}\n{plain * 1e3:.2f} ms a step without the profiler"
    path_of(asked.out, "profile_torch", asked.device, "txt").write_text(
        f"{head}; {STEPS} steps with it:\n\n{table}\n", encoding="utf-8"
    )
    print(f"{head.splitlines()[-1]}\n{table[:3000]}")
    if on_gpu and not any(event.self_device_time_total for event in found.key_averages()):
        raise SystemExit("the profile must hold times of the GPU; got none.")


if __name__ == "__main__":
    main()
