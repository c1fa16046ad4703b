"""Where the time of a step goes: the kernels that it starts, by what they do."""

from __future__ import annotations

import torch
from measuring import Case, clock

# The profiler's kernels by what they do; the first pattern that a name holds decides.
KINDS = {
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "matrix products": ("gemm", "cutlass", "nvjet", "xmma", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "optimizer": ("multi_tensor", "adam", "foreach"),
    "normalisation and sums": ("norm", "reduce", "softmax", "mean", "sum"),
    "copies and casts": ("copy", "memcpy", "memset", "cat", "fill"),
}


def kind_of(kernel: str) -> str:
    """What a kernel or operator does, by its name."""
    name = kernel.lower()
    return next((kind for kind, patterns in KINDS.items() if any(each in name for each in patterns)), "element-wise")


def where_time_goes(device: torch.device, case: Case) -> tuple[dict[str, float], str]:
    """Shares of a step's wall-clock by kind of kernel, `not computing` being the rest; and the profiler's own table."""
    from torch.profiler import ProfilerActivity, profile

    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    case()
    now = clock(device)
    with profile(activities=activities) as profiler:
        start = now()
        case()
        seconds = now() - start
    averages = profiler.key_averages()
    spent: dict[str, float] = {}
    for event in averages:
        if cuda and event.device_type != torch.autograd.DeviceType.CUDA:
            continue  # an operator's share is that of the kernels that it starts, which are listed themselves
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        spent[kind_of(event.key)] = spent.get(kind_of(event.key), 0.0) + own / 1e6
    spent["not computing"] = max(0.0, seconds - sum(spent.values()))
    total = sum(spent.values())
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    shares = {kind: value / total for kind, value in sorted(spent.items(), key=lambda pair: -pair[1])}
    return shares, averages.table(sort_by=order, row_limit=30, max_name_column_width=80)
