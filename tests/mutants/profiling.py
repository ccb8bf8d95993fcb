"""Wrong lines of sharding, hardware, plans and profiles."""

MUTANTS: dict[tuple[str, str], dict[str, tuple[str, str]]] = {
    ("sharding/rules.py", "sharding/test_rules.py"): {
        "parameters_stay_split_in_use": ('None if name == "embed" else name', "name"),
        "a_mesh_axis_twice": ("len(used) != len(set(used))", "False"),
    },
    ("sharding/mesh.py", "sharding/test_mesh.py"): {
        "tensor_crosses_slices": ("crossing = 0 if sizes[0] % slices == 0 else 1", "crossing = len(sizes) - 1"),
        "devices_are_left_over": ("-1 in self.sizes and available % fixed", "False"),
    },
    ("sharding/distributed.py", "launch/test_local.py -k malformed"): {
        "an_index_beyond_the_last": ("0 <= index < count", "0 <= index <= count"),
    },
    ("hardware/flops.py", "hardware/test_flops.py"): {
        "a_product_without_its_sums": (
            "2 * math.prod(_shape(equation.outvars[0])) * math.prod(shape[axis] for axis in contracted)",
            "2 * math.prod(_shape(equation.outvars[0]))",
        ),
        "loops_run_once": (
            '_times(parameters["length"], _inner_flops(parameters["jaxpr"]))',
            '_inner_flops(parameters["jaxpr"])',
        ),
        "the_cheapest_branch": ("return max((_inner_flops(branch)", "return min((_inner_flops(branch)"),
        "zeros_between_inputs_are_work": (' // math.prod(parameters["lhs_dilation"])', ""),
    },
    ("profiling/hlo.py", "profiling/test_hlo.py -k 'asked or scanned or condition or turns'"): {
        "an_all_reduce_goes_once": (
            "return kind, 2 * whole * (size - 1) // size",
            "return kind, whole * (size - 1) // size",
        ),
        "loops_begin_at_zero": (
            "max(0, int(limit.operands[0]) - self._begin(instruction, counter))",
            "int(limit.operands[0])",
        ),
    },
    ("profiling/plan/cost_model.py", "profiling/test_cost_model.py -k 'ring or shared or compute or talk'"): {
        "a_ring_sends_to_itself": ("share = (size - 1) / size *", "share ="),
        "gradients_take_no_room": ('"gradients": weights', '"gradients": 0'),
    },
    ("profiling/plan/roofline.py", "profiling/test_roofline.py"): {
        "tiles_not_filled_up": ("-(-size // tile) * tile", "size"),
        "loops_take_one_turn": ("more = turns - 1", "more = 0"),
    },
    ("hardware/chips.py", "hardware/test_chips.py"): {
        "a_peak_with_sparsity": ("197e12", "394e12"),
    },
    ("profiling/profile/memory.py", "profiling/test_memory.py -k hand"): {
        "aliased_results_take_room": (" and instruction.name not in elsewhere", ""),
    },
    ("profiling/profile/trace.py", "profiling/test_trace.py -k intervals"): {
        "the_shorter_end": ("max(end, found[-1][1])", "end"),
    },
    ("hardware/machine.py", "hardware/test_machine.py"): {
        "bfloat16_under_jax_0_10": ("(major, minor) >= (0, 12)", "(major, minor) >= (0, 10)"),
        "a_script_is_run_again_by_workers": ("is not None", "is not Ellipsis"),
    },
}
