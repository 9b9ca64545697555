"""The dashboard Hardware and engines: what GPUs, engines, nodes and disks do, and what it costs."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard
from overview import gpu_time
from panels import ANY, BAD, CARE, GOOD, board, lines, number

FULL = ((0.8, CARE), (0.9, BAD))
HELD = 'max(redraft_controller_gpus{run="$run"})'


def _totals():
    return (
        number("GPUs", "That ranks and actors hold.", "none", (HELD, ""), ANY),
        number(
            "GPUs busy",
            "Mean share of time in which the GPUs of this run computed.",
            "percentunit",
            ('avg(redraft_gpu_busy_share{run="$run"})', ""),
            ((0, BAD), (0.3, CARE), (0.6, GOOD)),
        ),
        number(
            "Tokens a second of a GPU",
            "Sampled or authored, over all GPUs of the run, those of the learner included.",
            "none",
            (f'sum(rate(redraft_tokens_total{{run="$run"}}[$__rate_interval])) / ({HELD} > 0)', ""),
            ANY,
        ),
        number(
            "GPU hours",
            "That ranks and actors have held since the run was started or resumed last.",
            "none",
            ('max(redraft_controller_gpu_seconds_total{run="$run"}) / 3600', ""),
            ANY,
        ),
        number(
            "Cost",
            "Those hours at the price above.",
            "none",
            ('max(redraft_controller_gpu_seconds_total{run="$run"}) / 3600 * $price', ""),
            ANY,
        ),
        number(
            "Cost of a day",
            "At the price above, with as many GPUs as now.",
            "none",
            (f"{HELD} * 24 * $price", ""),
            ANY,
        ),
    )


def _computed():
    """What the learner's GPUs compute of what they could."""
    step_s = (
        'sum(rate(redraft_learner_phase_seconds_sum{run="$run",phase="train"}[$__rate_interval]))'
        ' / sum(rate(redraft_learner_phase_seconds_count{run="$run",phase="train"}[$__rate_interval]))'
    )
    gpus = 'clamp_min(count(redraft_gpu_busy_share{run="$run",part="learner"}) or vector(0), 1)'
    work = (
        '6 * max(redraft_controller_trained_parameters{run="$run"}) * max(redraft_learner_forwarded_tokens{run="$run"})'
    )
    return lines(
        "What a GPU of the learner computes",
        "6 times parameters times tokens of the last step, a second in which it trains, as a share of the peak typed "
        "above. Attention is left out; with an adapter, whose base is not trained, it is far too low.",
        "percentunit",
        (f"{work} / ({step_s}) / {gpus} / ($peak * 1e12) and on () {HELD} > 0", "share of the peak"),
    )


def _of_processes():
    """What NVML tells each process of its own GPUs."""
    return (
        gpu_time(),
        _computed(),
        lines(
            "Memory of the GPUs",
            "In use on the GPUs of each process, by whomever, as a share; and by the process itself, where NVML tells.",
            "percentunit",
            (
                'max by (name, gpu) (redraft_gpu_used_bytes{run="$run"} / redraft_gpu_memory_bytes{run="$run"})',
                "{{name}} gpu {{gpu}}",
            ),
            (
                'max by (name, gpu) (redraft_gpu_process_bytes{run="$run"} / redraft_gpu_memory_bytes{run="$run"})',
                "{{name}} gpu {{gpu}}: its own",
            ),
        ),
        lines(
            "Power of the GPUs",
            "That they draw. Far below what the card may draw, it waits for memory or for work.",
            "watt",
            ('max by (name, gpu) (redraft_gpu_watts{run="$run"})', "{{name}} gpu {{gpu}}"),
        ),
    )


def _of_nodes():
    """What Ray's and NVIDIA's exporters tell of all GPUs of the nodes."""
    return (
        lines(
            "Node GPUs busy (Ray)",
            "Of each node of the run's Ray cluster.",
            "percentunit",
            ('max by (name, GpuIndex) (ray_node_gpus_utilization{run="$run"}) / 100', "{{name}} gpu {{GpuIndex}}"),
        ),
        lines(
            "Node GPU memory (Ray)",
            "In use, as a share.",
            "percentunit",
            (
                'max by (name, GpuIndex) (ray_node_gram_used{run="$run"}'
                ' / (ray_node_gram_used{run="$run"} + ray_node_gram_available{run="$run"}))',
                "{{name}} gpu {{GpuIndex}}",
            ),
            limits=((0.95, BAD),),
        ),
        lines(
            "GPUs busy (DCGM)",
            "Where dcgm-exporter is scraped: of all GPUs of the namespace.",
            "percentunit",
            (
                'max by (Hostname, gpu) (DCGM_FI_DEV_GPU_UTIL{namespace=~"$namespace"}) / 100',
                "{{Hostname}} gpu {{gpu}}",
            ),
        ),
        lines(
            "GPU errors (DCGM)",
            "The number of the last XID error of each GPU: 0 is none; NVIDIA's list says what the others mean.",
            "none",
            ('max by (Hostname, gpu) (DCGM_FI_DEV_XID_ERRORS{namespace=~"$namespace"})', "{{Hostname}} gpu {{gpu}}"),
            limits=((1, BAD),),
        ),
    )


def _state_of_gpus():
    return (
        lines(
            "Tensor cores (DCGM)",
            "Share of time in which they computed: of the chip's peak a run reaches less than this.",
            "percentunit",
            (
                'max by (Hostname, gpu) (DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{namespace=~"$namespace"})',
                "{{Hostname}} gpu {{gpu}}",
            ),
        ),
        lines(
            "GPU memory (DCGM)",
            "In use, as a share.",
            "percentunit",
            (
                'max by (Hostname, gpu) (DCGM_FI_DEV_FB_USED{namespace=~"$namespace"}'
                ' / (DCGM_FI_DEV_FB_USED{namespace=~"$namespace"} + DCGM_FI_DEV_FB_FREE{namespace=~"$namespace"}))',
                "{{Hostname}} gpu {{gpu}}",
            ),
            limits=((0.95, BAD),),
        ),
        lines(
            "GPU power (DCGM)",
            "That they draw.",
            "watt",
            (
                'max by (Hostname, gpu) (DCGM_FI_DEV_POWER_USAGE{namespace=~"$namespace"})',
                "{{Hostname}} gpu {{gpu}}",
            ),
        ),
        lines(
            "GPU temperature (DCGM)",
            "Degrees Celsius.",
            "celsius",
            ('max by (Hostname, gpu) (DCGM_FI_DEV_GPU_TEMP{namespace=~"$namespace"})', "{{Hostname}} gpu {{gpu}}"),
            limits=((85, CARE),),
        ),
    )


def _vllm(name: str) -> str:
    """A metric of vLLM's, of the chosen actors: vllm_... or vllm:..., by the format that Prometheus asks for."""
    return f'{{run="$run",name=~"$actor",__name__=~"vllm[:_]{name}"}}'


def _engines():
    """vLLM's own figures. On a CPU actors.engine.stats adds them."""
    return (
        lines(
            "KV cache in use",
            "Share of its blocks. At 100% requests are preempted and computed again.",
            "percentunit",
            (f"max by (name) ({_vllm('kv_cache_usage_perc')})", "{{name}}"),
            limits=((0.95, BAD),),
        ),
        lines(
            "Requests in the engine",
            "That run, and that wait for a place in the batch or in the cache.",
            "none",
            (f"sum by (name) ({_vllm('num_requests_running')})", "{{name}} run"),
            (f"sum by (name) ({_vllm('num_requests_waiting')})", "{{name}} wait"),
        ),
        lines(
            "Preemptions a second",
            "Requests that lost their place in the cache: fewer actors.groups, or more memory for it.",
            "none",
            (f"sum by (name) (rate({_vllm('num_preemptions_total')}[$__rate_interval]))", "{{name}}"),
        ),
        lines(
            "Tokens a second of an engine",
            "That vLLM generates, those of evaluations included.",
            "none",
            (f"sum by (name) (rate({_vllm('generation_tokens_total')}[$__rate_interval]))", "{{name}}"),
        ),
    )


def _nodes():
    return (
        lines(
            "Node memory",
            "In use, as a share of what the node or its container may have.",
            "percentunit",
            ('max by (name) (ray_node_mem_used{run="$run"} / ray_node_mem_total{run="$run"})', "{{name}}"),
            limits=FULL,
        ),
        lines(
            "Node processors",
            "Busy share of all cores.",
            "percentunit",
            ('max by (name) (ray_node_cpu_utilization{run="$run"}) / 100', "{{name}}"),
        ),
        lines(
            "Object store",
            "In use, as a share: weights for actors of other nodes, and calls. What it spills goes to the disk.",
            "percentunit",
            (
                'max by (name) (ray_object_store_used_memory{run="$run"} / (ray_object_store_used_memory{run="$run"}'
                ' + ray_object_store_available_memory{run="$run"}))',
                "{{name}}",
            ),
            limits=FULL,
        ),
    )


def _disks():
    return (
        lines(
            "Disks of the run",
            "In use, as a share: the run folder (controller), and the spool of each shard of replay.",
            "percentunit",
            (
                '1 - max by (name) (redraft_disk_free_bytes{run="$run"} / redraft_disk_bytes{run="$run"})',
                "{{name}}",
            ),
            limits=FULL,
        ),
        lines(
            "Node disks",
            "In use, as a share, of the root of each node.",
            "percentunit",
            (
                'max by (name) (ray_node_disk_usage{run="$run"}'
                ' / (ray_node_disk_usage{run="$run"} + ray_node_disk_free{run="$run"}))',
                "{{name}}",
            ),
            limits=FULL,
        ),
        lines(
            "Network",
            "Bytes a second that each node sends and receives.",
            "Bps",
            ('max by (name) (ray_node_network_send_speed{run="$run"})', "{{name}} sends"),
            ('max by (name) (ray_node_network_receive_speed{run="$run"})', "{{name}} receives"),
        ),
    )


def hardware() -> Dashboard:
    return board(
        "hardware",
        "Hardware and engines",
        "What GPUs, engines, nodes and disks do, and what it costs.",
        ("What is held, and what it costs", _totals()),
        ("GPUs of the processes", _of_processes()),
        ("GPUs of the nodes", _of_nodes()),
        ("", _state_of_gpus()),
        ("Engines", _engines()),
        ("Nodes", _nodes()),
        ("Disks and network", _disks()),
    )
