"""Wrong lines of the configuration, of an ablation's scaling and table, and of formatting."""

MUTANTS: dict[tuple[str, str], dict[str, tuple[str, str]]] = {
    ("ablation/scaling.py", "ablation/test_scaling.py -k 'linear or quadratic or hand'"): {
        "growth_by_the_smallest": ("math.log(tokens[-1] / tokens[-2])", "math.log(tokens[-1] / tokens[0])"),
    },
    ("config/extension.py", "config/test_extension.py"): {
        "the_newest_checkpoint_whatever_its_rates": ("if step <= limits[key]]", "if step <= newest]"),
        "the_rates_of_critics_do_not_count": ("if critics else {}", "if not critics else {}"),
        "checkpoints_of_the_cooldown_stay": ("if step > start]", "if step > start + 10]"),
    },
    ("config/experiment_file.py", "config/test_experiment.py -k 'dtype or aside'"): {
        "a_run_changes_its_dtype": ("dtype = begun.model.dtype", "dtype = machine.dtype"),
        "a_run_in_training_is_moved": ("with lock(run_dir), files", "with files"),
    },
    ("config/experiment_file.py", "config/test_experiment.py -k 'fingerprint'"): {
        "the_order_of_mappings_decides": ("sort_keys=True", "sort_keys=False"),
        "how_a_run_is_carried_out_decides": ("data(for_fingerprint=True)", "data(for_fingerprint=False)"),
    },
    ("config/schema.py", "config/test_tree.py"): {
        "zero_with_a_sign": ("return float(value) + 0.0", "return float(value)"),
        "truths_are_numbers": ("if type(value) is arm:", "if isinstance(value, arm):"),
    },
    ("formatting.py", "training/test_progress.py -k durations"): {
        "hours_without_days": ("if whole < 86400:", "if whole < 864000:"),
    },
    ("ablation/table.py", "ablation/test_ablate.py -k holds_what"): {
        "lower_is_better": ("more = not self.metric", "more = self.metric"),
    },
}
