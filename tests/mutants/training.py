"""Wrong lines of training, optimizers and checkpoints."""

MUTANTS: dict[tuple[str, str], dict[str, tuple[str, str]]] = {
    ("training/step.py", "training/test_step.py -k 'parts or a_step_is or finite or average or randomness'"): {
        "every_step_draws_alike": ("jax.random.fold_in(key, state.step)", "jax.random.fold_in(key, 0)"),
        "average_moves_the_other_way": ("old + (1 - decay) * (new - old)", "old + decay * (new - old)"),
        "average_warms_up_slowly": ("(10.0 + state.step)", "(100.0 + state.step)"),
        "parts_by_their_own_weights": (
            "gradient(players, *part_and_key, weights)), None",
            "gradient(players, *part_and_key, None)), None",
        ),
        "gradients_that_are_not_finite_count": (
            "jnp.isfinite(sum(losses)) & jnp.isfinite(sum(norms))",
            "jnp.isfinite(sum(losses))",
        ),
        "moments_keep_what_is_not_finite": (
            "opt_state=_choose(good, opt_state, state.opt_state)",
            "opt_state=opt_state",
        ),
        "all_parts_draw_alike": (
            "keys = jax.random.split(key, parts)",
            "keys = jax.random.split(key, 1)[jnp.zeros(parts, int)]",
        ),
    },
    ("optim/schedules.py", "optim/test_schedules.py"): {
        "warmup_beyond_half_of_the_run": ("min(self.warmup, steps // 2)", "self.warmup"),
        "cosine_ends_at_zero": ("alpha=self.end", "alpha=0.0"),
        "cooldown_a_step_early": ("start = steps - cooldown", "start = steps - cooldown - 1"),
        "rsqrt_not_rooted": ("(1 + step / self.timescale) ** 0.5", "(1 + step / self.timescale)"),
    },
    ("optim/optimizers.py", "optim/test_optimizers.py -k 'optax or muon'"): {
        "lion_with_its_moments_swapped": ("scale_by_lion(self.b1, self.b2)", "scale_by_lion(self.b2, self.b1)"),
        "muon_by_the_shorter_side": ("0.2 * math.sqrt(max(", "0.2 * math.sqrt(min("),
        "another_polynomial": ("(3.4445, -4.7750, 2.0315)", "(3.4445, -4.7750, 2.1315)"),
        "adafactor_debiased": ("debias=False", "debias=True"),
    },
    ("training/metrics.py", "training/test_metrics.py -k 'resume or digest or summary'"): {
        "the_resumed_step_is_cut": ('values["step"] <= step', 'values["step"] < step'),
        "digest_without_shapes": (" {list(np.shape(leaf))}\\n", "\\n"),
    },
    ("training/run_dir.py", "training/test_run_dir.py"): {
        "the_first_checkpoint_is_expected_too_late": ("saved = steps > 2 * every", "saved = steps > 3 * every"),
        "the_first_checkpoint_is_expected_too_early": ("saved = steps > 2 * every", "saved = steps > every"),
    },
    ("writers.py", "test_writers.py -k resumed"): {
        "a_step_is_sent_twice": ("if step > self._step:", "if step >= self._step:"),
        "an_evaluation_of_a_logged_step_is_lost": ("and name not in self._names}", "and not self._names}"),
        "rows_are_counted_again": ('kept["id"], int(kept["rows"])', 'kept["id"], 0'),
    },
    ("checkpoint/manager.py", "checkpoint/test_manager.py -k 'newest_and'"): {
        "the_oldest_are_kept": ("lasting[-self._config.keep :]", "lasting[: self._config.keep]"),
        "the_worst_are_kept": ('best_mode == "max"', 'best_mode == "min"'),
    },
    ("checkpoint/integrity.py", "checkpoint/test_integrity.py -k 'any_damage'"): {
        "every_file_but_the_first_is_looked_at": ("[part::parts]", "[part + 1 :: parts]"),
    },
    ("checkpoint/initialize.py", "checkpoint/test_initialize.py -k 'average or resiz or renamed'"): {
        "the_average_is_never_taken": ('"ema/" if config.average else "model/"', '"model/"'),
        "grids_resized_linearly": ('"bicubic" if position.ndim == 3 else "linear"', '"linear"'),
    },
    ("training/progress.py", "training/test_progress.py"): {
        "rates_of_the_whole_run": ("deque(maxlen=WINDOW + 1)", "deque()"),
        "pauses_count_as_steps": (" - (now[2] - before[2])", ""),
    },
    ("optim/schedules.py", "optim/test_schedules.py -k extended"): {
        "extended_from_its_cooldown": ("max(steps - round(self.cooldown * steps), self.warmup) if", "steps if"),
        "extended_after_a_shortened_warmup": (
            "return self.warmup if 2 * self.warmup <= steps else 0",
            "return self.warmup",
        ),
    },
}
