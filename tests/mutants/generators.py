"""Wrong lines of generators, and of the layers that only they have."""

MUTANTS: dict[tuple[str, str], dict[str, tuple[str, str]]] = {
    ("generators/gaussian.py", "generators/test_vae.py -k 'draw or divergence'"): {
        "draw_without_gradient": (
            "return self.mean + self.deviation * noise",
            "return jax.lax.stop_gradient(self.mean + self.deviation * noise)",
        ),
        "draw_of_the_root": ("self.mean + self.deviation * noise", "self.mean + jnp.sqrt(self.deviation) * noise"),
        "divergence_by_the_wrong_deviation": ("- other.mean) / other.deviation", "- other.mean) / self.deviation"),
        "divergence_without_the_one": ("- 1 - jnp.log(ratio)", "- jnp.log(ratio)"),
    },
    ("generators/vae.py", "generators/test_vae.py -k 'bound or reconstruction or condition'"): {
        "encoder_without_reconstruction": ("q.sample(key), fused)", "jax.lax.stop_gradient(q.sample(key)), fused)"),
        "free_bits_as_a_ceiling": (
            "jnp.maximum(divergence, self.free_bits)",
            "jnp.minimum(divergence, self.free_bits)",
        ),
        "density_without_the_half": ("log_deviation + 0.5 * jnp.log", "log_deviation + jnp.log"),
        "beta_a_step_early": ("step / self.warmup", "(step + 1) / self.warmup"),
    },
    (
        "generators/adversary.py",
        "generators/test_adversary.py -k 'hand or formulas or penalty or usual or adaptive'",
    ): {
        "penalty_without_gradient": (
            "return jnp.square(gradient.astype(jnp.float32))",
            "return jnp.square(jax.lax.stop_gradient(gradient).astype(jnp.float32))",
        ),
        "penalty_of_both_kinds_doubled": ("= penalty / 2", "= penalty"),
        "anchors_not_learned": ("jnp.square(score_ema - jax", "jnp.square(jax.lax.stop_gradient(score_ema) - jax"),
        "anchors_of_the_same_kind": ("jax.lax.stop_gradient(score_ema)[::-1]", "jax.lax.stop_gradient(score_ema)"),
        "anchors_drawn_by_the_critic": ("scores - jax.lax.stop_gradient(score_ema)[::-1]", "scores - score_ema[::-1]"),
        "anchors_draw_the_critic": (
            "jnp.square(score_ema - jax.lax.stop_gradient(scores))",
            "jnp.square(score_ema - scores)",
        ),
        "generator_begins_a_step_late": ("step >= config.warmup", "step > config.warmup"),
        "relativistic_the_other_way": (
            "return jax.nn.softplus(true - fake)\n\n",
            "return jax.nn.softplus(fake - true)\n\n",
        ),
        "hinge_at_two": ("relu(1 - true)", "relu(2 - true)"),
        "least_squares_of_the_made_at_one": ("jnp.square(1 - true) + jnp.square(fake)", "jnp.square(1 - true) + fake"),
        "matching_at_the_weight_of_scores": (
            "adversarial_loss + config.feature_matching *",
            "adversarial_loss + config.weight *",
        ),
    },
    ("generators/adversary.py", "generators/test_adversarial_step.py -k each_players"): {
        "model_learns_the_critics_loss": ("jax.lax.stop_gradient(fake), 1)", "fake, 1)"),
        "condition_learns_the_critics_loss": ("condition = jax.lax.stop_gradient(condition)", "condition = condition"),
        "critic_learns_the_generators_loss": (
            "frozen = jax.lax.stop_gradient(self)\n\n",
            "frozen = self\n\n",
        ),
    },
    ("generators/critics.py", "generators/test_critics.py"): {
        "condition_not_scaled": (" * x.shape[-1] ** -0.5", ""),
        "leak_of_a_tenth": ("leaky_relu(x, 0.2)", "leaky_relu(x, 0.1)"),
    },
    ("generators/augmentation.py", "generators/test_augmentation.py"): {
        "moves_to_one_side": ("(2 * most + 1)) - most", "(2 * most + 1))"),
        "cuts_nothing": ("> size / 4)", "> -1)"),
    },
    ("generators/codes.py", "generators/test_vq.py -k 'codebook or gradients or codes or scalars'"): {
        "stop_gradients_swapped": (
            "moved = jnp.square(chosen - jax.lax.stop_gradient(unit)).mean((1, 2, 3))\n"
            "        kept = jnp.square(unit - jax.lax.stop_gradient(chosen))",
            "moved = jnp.square(unit - jax.lax.stop_gradient(chosen)).mean((1, 2, 3))\n"
            "        kept = jnp.square(chosen - jax.lax.stop_gradient(unit))",
        ),
        "commitment_at_full_weight": ("moved + self.commitment * kept", "self.commitment * moved + kept"),
        "codebook_not_learned": ("jnp.square(chosen - jax", "jnp.square(jax.lax.stop_gradient(chosen) - jax"),
        "nothing_passes_straight_through": ("(unit + jax.lax.stop_gradient(chosen - unit))", "chosen"),
        "used_codes_are_revived": ("jnp.where(used, 0,", "jnp.where(~used, 0,"),
        "vectors_are_drawn_to_unused_codes": ("_revive(jax.lax.stop_gradient(unit), ", "_revive(unit, "),
        "even_levels_off_centre": ("jnp.where(levels % 2 == 0, 0.5, 0.0)", "jnp.where(levels % 2 == 0, 0.0, 0.0)"),
    },
    ("generators/vq.py", "generators/test_vq.py -k tokenizer"): {
        "absent_examples_use_codes": (
            "jnp.where(present, jax.nn.one_hot(codes, self.quantizer.size), 0)",
            "jax.nn.one_hot(codes, self.quantizer.size)",
        ),
    },
    ("generators/canvas.py", "generators/test_canvas.py"): {
        "pixels_from_zero": ("2 * values - 1", "values"),
        "colours_counted_once": ("self.valid_shape[1] * self.channels", "self.valid_shape[1]"),
        "absent_pixels_are_painted": ("jnp.where(weights[..., None, None] > 0, x, 0)", "x"),
        "critic_sees_what_is_absent": (
            "jnp.where((real > 0) & (jnp.arange(width) < columns)[:, None], x, 0)",
            "x",
        ),
    },
    ("generators/gan.py", "generators/test_adversarial_step.py -k a_gan"): {
        "reconstruction_at_full_weight": ("self.reconstruction * squared_error(fake)", "squared_error(fake)"),
    },
    ("generators/code_decoder.py", "generators/test_code_decoder.py -k 'loss_is'"): {
        "codes_one_off": ("rules=self.rules) + BEFORE", "rules=self.rules) + BEFORE - 1"),
        "codes_summed": ("jnp.sum(logits * hot, -1)).mean(1)", "jnp.sum(logits * hot, -1)).sum(1)"),
    },
    ("generators/text.py", "generators/test_text.py -k 'loss_and or memories'"): {
        "writer_sees_its_token": ("jnp.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=PADDING)", "ids"),
        "absent_tokens_must_be_right": ("(right | ~present).all(1)", "(right & present).all(1)"),
        "positions_one_off": ("self.position[...], position, 1)", "self.position[...], position + 1, 1)"),
    },
    ("layers/decoder.py", "generators/test_text.py -k memories"): {
        "own_place_not_remembered": ("(places <= position)[None]", "(places < position)[None]"),
        "keys_not_rotated_to_their_place": ("position[None, None]", "0 * position[None, None]"),
        "the_cache_ignores_the_gate": ("apply_gate(self.gate, self.seen.attend(", "apply_gate(None, self.seen.attend("),
    },
    ("generators/decoding.py", "generators/test_text.py -k 'beam or narrowing or draws or likeliest'"): {
        "nucleus_without_its_last": ("jnp.where(before < top_p,", "jnp.where(before + probabilities < top_p,"),
        "one_too_few_of_the_likeliest": (
            "[0][:, -1:]\n        logits = jnp.where(logits < least",
            "[0][:, -1:]\n        logits = jnp.where(logits <= least",
        ),
        "cold_where_hot": ("logits / decoding.temperature", "logits * decoding.temperature"),
        "the_same_noise_everywhere": ("jax.random.fold_in(key, position)", "key"),
        "lengths_without_penalty": ("** decoding.length_penalty", "** 0"),
        "all_beams_alike": ("jnp.where(jnp.arange(beams) == 0,", "jnp.where(jnp.arange(beams) >= 0,"),
        "ended_beams_go_on": ("jnp.where(_ended(last, position)[..., None], resting, likely)", "likely"),
    },
    ("generators/text_vae.py", "generators/test_text_vae.py -k 'bound or encoder'"): {
        "text_without_free_bits": ("jnp.maximum(divergence, self.free_bits)", "divergence"),
        "text_draw_without_gradient": (
            "self.condition(q.sample(draw_key), fused)",
            "self.condition(jax.lax.stop_gradient(q.sample(draw_key)), fused)",
        ),
    },
    (
        "generators/speech.py",
        "generators/test_speech.py -k 'bound or densities or flow or durations or last or encoder'",
    ): {
        "speech_divergence_without_the_half": (
            "jnp.log(p.deviation / q.deviation) - 0.5 +",
            "jnp.log(p.deviation / q.deviation) +",
        ),
        "speech_draw_without_gradient": (
            "z = q.sample(jax.random.key(0) if key is None else key)",
            "z = jax.lax.stop_gradient(q.sample(jax.random.key(0) if key is None else key))",
        ),
        "durations_teach_the_text": (
            "tokens, summary = jax.lax.stop_gradient((fused.unimodal[self.text], fused.pooled))",
            "tokens, summary = fused.unimodal[self.text], fused.pooled",
        ),
        "flow_without_inverse": ("[a, b - self._shift(", "[a, b + self._shift("),
        "durations_rounded_down": (
            "jnp.round(jnp.exp(jnp.clip(log_durations",
            "jnp.floor(jnp.exp(jnp.clip(log_durations",
        ),
        "density_without_the_square_of_means": ("jnp.square(p.mean) * precision + 2", "2"),
    },
    ("layers/alignment.py", "layers/test_alignment.py -k 'alignment or durations'"): {
        "alignment_never_goes_on": ("jnp.maximum(best, before) + score", "best + score"),
        "tokens_reached_a_frame_late": ("order <= jnp.arange(scores.shape[1])", "order < jnp.arange(scores.shape[1])"),
        "more_tokens_than_frames": ("jnp.minimum(frame_mask.sum(1), token_mask.sum(1)) - 1", "token_mask.sum(1) - 1"),
        "tokens_last_a_frame_longer": ("(place < ends)", "(place <= ends)"),
    },
    ("generators/stft.py", "generators/test_vocoder.py -k 'magnitudes or distances'"): {
        "no_frames_before_the_first": ("((0, 0), (window - hop, ", "((0, 0), (0, "),
        "bands_of_magnitudes": ("jnp.square(x) @ filters", "x @ filters"),
        "convergence_not_rooted": (
            "jnp.sqrt(jnp.where(apart, error / jnp.maximum(power, FLOOR), 1))",
            "jnp.where(apart, error / jnp.maximum(power, FLOOR), 1)",
        ),
    },
    (
        "generators/phase_reconstruction.py",
        "generators/test_phase_reconstruction.py -k 'phases or gradients or transform'",
    ): {
        "gradients_through_phases": ("fixed = jax.lax.stop_gradient(magnitudes)", "fixed = magnitudes"),
        "no_momentum": ("MOMENTUM = 0.99", "MOMENTUM = 0.0"),
        "weights_of_windows_not_squared": ("jnp.broadcast_to(taper**2,", "jnp.broadcast_to(taper,"),
    },
    ("generators/vocoder.py", "generators/test_vocoder.py -k 'the_loss or layer or repeating'"): {
        "start_left_out": ("jnp.tanh(samples + start)", "jnp.tanh(samples)"),
        "branches_summed": ("sum(others, first) / len(branches)", "sum(others, first)"),
        "no_rectifier_before_places_multiply": ("upsample(_activate(x), factor", "upsample(x, factor"),
        "recordings_without_a_spectrum_count": (
            "(batch.present[self.target] & batch.present[self.mel])[:, None]",
            "batch.present[self.target][:, None]",
        ),
    },
    ("generators/waveform_critics.py", "generators/test_waveform_critics.py -k networks"): {
        "scales_summed": ("self._rows(x, scale).mean(2)", "self._rows(x, scale).sum(2)"),
        "periods_stride_two": ("make((5, 1), (3, 1), (3, 1))", "make((5, 1), (2, 1), (3, 1))"),
    },
    ("generators/perceptual.py", "generators/test_perceptual.py -k numpy"): {
        "judge_sees_twice_the_contrast": ("(x / 2)", "(x)"),
        "features_not_of_unit_length": (
            "unit_norm(layer.astype(jnp.float32))",
            "layer.astype(jnp.float32)",
        ),
        "judge_learns": ("jax.lax.stop_gradient(self.judge)(", "self.judge("),
    },
}
