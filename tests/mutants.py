"""The table of `tests.mutations`: one wrong formula, gradient, mask, seed or offset each, and the tests that see it.

By (file below mmjax/, pytest's arguments below tests/): name -> (what stands there once, what is put in its place).
"""

MUTANTS: dict[tuple[str, str], dict[str, tuple[str, str]]] = {
    # Generators.
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
    ("generators/adversary.py", "generators/test_adversary.py -k each_players"): {
        "model_learns_the_critics_loss": ("jax.lax.stop_gradient(fake), 1)", "fake, 1)"),
        "condition_learns_the_critics_loss": ("condition = jax.lax.stop_gradient(condition)", "condition = condition"),
        "critic_learns_the_generators_loss": (
            "frozen = jax.lax.stop_gradient(self)\n\n",
            "frozen = self\n\n",
        ),
    },
    ("generators/critics.py", "generators/test_adversary.py -k patch_critic"): {
        "condition_not_scaled": (" * x.shape[-1] ** -0.5", ""),
        "leak_of_a_tenth": ("leaky_relu(x, 0.2)", "leaky_relu(x, 0.1)"),
    },
    ("generators/augmentation.py", "generators/test_adversary.py -k augmentation"): {
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
    ("generators/gan.py", "generators/test_adversary.py -k a_gan"): {
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
    # Heads.
    ("heads/contrast.py", "heads/test_heads.py -k contrast"): {
        "temperature_without_gradient": (
            "present, scale, bias, self.rules",
            "present, jax.lax.stop_gradient(scale), bias, self.rules",
        ),
        "embeddings_not_of_unit_length": ("unit_norm(x.astype(jnp.float32))", "x.astype(jnp.float32)"),
    },
    ("heads/contrastive_loss.py", "heads/test_heads.py -k contrast"): {
        "one_way_only": ("losses = (losses + by_column) / 2", "losses = losses"),
        "absent_partners_repel": ("jnp.where(present, losses, 0).sum(1)", "losses.sum(1)"),
        "absent_partners_win": ("jnp.where(present, similarities, -jnp.inf)", "similarities"),
    },
    ("heads/contrastive_loss.py", "training/test_step.py -k every_mesh"): {
        "partners_of_the_first_device": ("jax.lax.axis_index(axes) * len(first)", "0 * jax.lax.axis_index(axes)"),
    },
    ("heads/classify.py", "heads/test_heads.py -k classify"): {
        "accuracy_by_class_weights": ("Average.of(right, weights > 0)", "Average.of(right, weights)"),
        "smoothing_left_out": ("self.classes), self.smoothing)", "self.classes), 0.0)"),
    },
    ("heads/regress.py", "heads/test_heads.py -k regress"): {
        "squares_not_halved": ("jnp.square(error / deviation) / 2", "jnp.square(error / deviation)"),
        "covered_within_one_deviation": ("< 1.96 * deviation", "< deviation"),
        "numbers_of_a_vector_counted_once": (" * batch.values[self.target].shape[-1]", ""),
    },
    # Fusion.
    ("fusion/experts.py", "fusion/test_streams.py -k 'experts or routers or balanc'"): {
        "router_without_task_gradient": (
            "self.experts(normed, gates,",
            "self.experts(normed, jax.lax.stop_gradient(gates),",
        ),
        "balance_without_gradient": (
            "losses + balance_loss(probabilities, masks)",
            "losses + jax.lax.stop_gradient(balance_loss(probabilities, masks))",
        ),
        "balance_not_by_the_square_of_modalities": ("jnp.maximum(present, 1) ** 2", "jnp.maximum(present, 1)"),
        "balance_summed_over_layers": ("self.balance * losses / self.stack.depth", "self.balance * losses"),
        "balance_counts_padding": (" * mask[..., None]\n        wanted", "\n        wanted"),
        "one_expert_too_few": ("gates >= kept", "gates > kept"),
        "balance_of_the_mean_alone": ("jnp.sum(wanted * mean)", "jnp.sum(mean * mean)"),
    },
    ("layers/mlp.py", "fusion/test_streams.py -k experts"): {
        "answers_without_gates": ("(slots * gates[..., None])", "slots"),
        "the_least_wanted_first": (
            "jnp.argsort(-jax.lax.stop_gradient(gates), 1)",
            "jnp.argsort(jax.lax.stop_gradient(gates), 1)",
        ),
    },
    ("fusion/base.py", "fusion/test_streams.py -k single_stream"): {
        "all_tokens_of_the_first_kind": ("tokens.values + kind[index]", "tokens.values + kind[0]"),
        "tokens_without_time": ("marked[name] = x if tokens.time is None else", "marked[name] = x if True else"),
    },
    ("fusion/bottleneck.py", "fusion/test_streams.py -k bottleneck"): {
        "absent_modalities_weigh": ("total / jnp.maximum(sum(weights), 1)", "total / len(weights)"),
        "latents_see_only_latents": ("self.attention(latents, x, mask)", "self.attention(latents, latents, seen)"),
        "blocks_beyond_the_depth": ("config.depth - config.fusion_start)", "config.depth)"),
    },
    ("fusion/cross_attention.py", "fusion/test_streams.py -k cross_attention"): {
        "modalities_read_those_before_them_anew": (
            "concat_streams(streams, rest), concat_streams(masks",
            "concat_streams({**streams, **result}, rest), concat_streams(masks",
        ),
    },
    ("fusion/multiway.py", "fusion/test_streams.py -k multiway"): {
        "perceptron_without_its_norm": ("(self.norms[name](parts[name]))", "(parts[name])"),
    },
    ("fusion/pooled.py", "fusion/test_pooled.py -k 'weighted or attention'"): {
        "absent_modalities_share_the_softmax": (
            "jnp.where(present, scores.astype(jnp.float32), -1e9)",
            "scores.astype(jnp.float32)",
        ),
    },
    ("fusion/film.py", "fusion/test_pooled.py -k film"): {
        "modulated_without_the_one": ("self.norm(h) * (1 + gamma) + beta", "self.norm(h) * gamma + beta"),
    },
    ("fusion/late.py", "fusion/test_pooled.py -k late"): {
        "votes_of_the_absent": (
            "jnp.where(present[..., None], votes * self.weights[...][:, None].astype(votes.dtype), 0)",
            "votes * self.weights[...][:, None].astype(votes.dtype)",
        ),
    },
    ("fusion/gated.py", "fusion/test_pooled.py -k gated"): {
        "values_not_squashed": ("jnp.tanh(value(means[:, index]))", "value(means[:, index])"),
    },
    ("fusion/bilinear.py", "fusion/test_pooled.py -k bilinear"): {
        "signs_lost": ("jnp.sign(product) * (", "1.0 * ("),
    },
    ("fusion/low_rank_tensor.py", "fusion/test_pooled.py -k low_rank"): {
        "factors_without_the_one": ("product * (1 + factor(means[:, index]))", "product * factor(means[:, index])"),
    },
    # Layers.
    ("layers/attention.py", "layers/test_layers.py -k 'attention or masked_mean or block'"): {
        "attention_to_nothing_is_something": ("jnp.where(mask.any(1)[:, None, None], y, 0)", "y"),
        "mean_over_all_places": ("jnp.maximum(weights.sum(1, keepdims=True), 1)", "weights.shape[1]"),
        "perceptron_without_residual": (
            "return x + dropout(self.mlp(self.mlp_norm(x))",
            "return dropout(self.mlp(self.mlp_norm(x))",
        ),
    },
    ("layers/attention_kernels.py", "layers/test_layers.py -k attention"): {
        "scores_by_the_whole_head": (
            "preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5",
            "preferred_element_type=jnp.float32) / query.shape[-1]",
        ),
        "masked_tokens_are_seen": ("jnp.where(mask, logits, lowest)", "logits"),
    },
    ("layers/attention_kernels.py", "generators/test_text.py -k memories"): {
        "the_next_token_is_seen": (
            "jnp.tri(logits.shape[2], logits.shape[3], dtype=bool)",
            "jnp.tri(logits.shape[2], logits.shape[3], 1, dtype=bool)",
        ),
    },
    ("layers/norm.py", "layers/test_layers.py -k 'norm or dropout'"): {
        "norm_of_the_sum": ("jnp.mean(jnp.square(wide)", "jnp.sum(jnp.square(wide)"),
        "dropout_not_scaled_up": ("x / (1 - rate)", "x"),
    },
    ("layers/position.py", "layers/test_layers.py -k time_embedding"): {
        "periods_up_to_20_s": ("jnp.log(0.005)", "jnp.log(0.05)"),
    },
    ("layers/linear.py", "layers/test_layers.py -k 'linear or embedding or born'"): {
        "variance_of_the_outputs": ('scale, "fan_in"', 'scale, "fan_out"'),
        "table_twice_as_wide": ("normal(width**-0.5)", "normal(1.0)"),
    },
    ("layers/conv.py", "layers/test_layers.py -k convolution"): {
        "padding_after_before": ("(((side - 1) // 2, side // 2)", "((side // 2, (side - 1) // 2)"),
    },
    ("layers/patches.py", "layers/test_layers.py -k 'cut or windows'"): {
        "pictures_column_by_column": ("transpose(0, 1, 3, 2, 4, 5)", "transpose(0, 3, 1, 2, 4, 5)"),
        "windows_begin_at_their_entry": ("(around, around)", "(0, 2 * around)"),
    },
    ("layers/patches.py", "encoders/test_encoders.py -k 'masked or whole_tokens'"): {
        "masked_frames_reach_their_group": (
            "jnp.pad(jnp.where(mask[..., None], x, 0), ((0, 0), (0, missing)",
            "jnp.pad(x, ((0, 0), (0, missing)",
        ),
    },
    ("layers/stack.py", "layers/test_stack.py -k 'differently or recompute or same'"): {
        "all_layers_start_alike": (
            "(jax.random.split(rngs.params(), depth))",
            "(jax.random.split(rngs.params(), 1)[jax.numpy.zeros(depth, int)])",
        ),
        "nothing_is_recomputed": ("nothing_saveable", "everything_saveable"),
        "all_layers_drop_alike": (
            "keys = None if key is None else jax.random.split(key, self.depth)",
            "keys = None if key is None else jax.random.split(key, 1)[jax.numpy.zeros(self.depth, int)]",
        ),
    },
    ("layers/temporal_conv.py", "layers/test_temporal_conv.py"): {
        "masked_frames_reach_others": ("x = jnp.where(mask[..., None], x, 0)", "x = x"),
        "nothing_is_told": ("self.into(x) + self.condition(summary.astype(x.dtype))[:, None]", "self.into(x)"),
    },
    ("layers/conv_autoencoder.py", "layers/test_conv_autoencoder.py"): {
        "scaled_without_the_one": ("y * (1 + scale) + shift", "y * scale + shift"),
    },
    ("layers/spectrogram.py", "layers/test_spectrogram.py -k 'mel or definition'"): {
        "mel_of_700_and_a_half": (
            "2595 * np.log10(1 + np.asarray(hertz) / 700)",
            "2595 * np.log10(1 + np.asarray(hertz) / 750)",
        ),
    },
    ("layers/low_precision.py", "layers/test_low_precision.py -k 'int8'"): {
        "one_scale_for_all_columns": (
            "* of_rows * of_columns\n",
            "* of_rows * of_columns.mean()\n",
        ),
    },
    # Encoders.
    ("encoders/vit.py", "encoders/test_encoders.py -k test_vit"): {
        "pixels_not_centred": ("(patches - 0.5)", "(patches)"),
        "grid_read_by_columns": ('"h w d -> (h w) d"', '"h w d -> (w h) d"'),
    },
    ("encoders/recurrent.py", "encoders/test_encoders.py -k recurrent_over"): {
        "padding_moves_the_state": ("jnp.where(real[:, None], new, old)", "new"),
        "forget_gate_starts_half_open": ("(1, 1.0)", "(1, 0.0)"),
        "update_gate_the_other_way": (
            "(1 - update) * candidate + update * state",
            "update * candidate + (1 - update) * state",
        ),
    },
    ("encoders/audio.py", "encoders/test_encoders.py -k whole_tokens"): {
        "time_of_the_first_frame": ("(jnp.arange(self.count) + 0.5)", "jnp.arange(self.count)"),
        "masked_frames_reach_the_convolution": (
            "sliding_windows(jnp.where(mask[..., None], x, 0), STEM_KERNEL, 2)",
            "sliding_windows(x, STEM_KERNEL, 2)",
        ),
    },
    ("encoders/text.py", "encoders/test_encoders.py -k text_transformer"): {
        "tokens_without_position": (" + self.position[...].astype(self.dtype)", ""),
    },
    # The model.
    ("model.py", "test_model.py -k 'absent or makes or weighted or hides or see or add'"): {
        "losses_unweighted": ("total + self.weights[name] * _value(loss", "total + _value(loss"),
        "outputs_see_their_target": ("jnp.zeros_like(tokens.mask) if name in hidden else tokens.mask", "tokens.mask"),
        "all_modalities_dropped": (" | (draw >= draw.max(1, keepdims=True))", ""),
        "absent_values_are_read": (
            "values = jnp.where(present.reshape(-1, *[1] * (values.ndim - 1)), values, 0)",
            "values = values",
        ),
        "absent_tokens_are_real": ("tokens.mask & present[:, None], tokens.time", "tokens.mask, tokens.time"),
    },
    ("types.py", "test_types.py"): {
        "weight_zero_shows_nan": (
            "jnp.where(weights != 0, values.astype(jnp.float32), 0) * weights",
            "values.astype(jnp.float32) * weights",
        ),
        "average_by_the_number": (
            "self.total / jnp.where(self.weight == 0, 1, self.weight)",
            "self.total / jnp.maximum(self.weight, 1)",
        ),
    },
    ("types.py", "generators/test_vq.py -k tokenizer"): {
        "perplexity_in_bits": ("np.exp(-(shares", "np.exp2(-(shares"),
    },
    # Training.
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
    ("checkpoint/integrity.py", "checkpoint/test_manager.py -k 'any_damage'"): {
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
    # Data.
    (
        "data/loader.py",
        "data/test_loader.py -k 'layout or seed or augment or epoch or some_examples or chain or damage'",
    ): {
        "all_features_draw_alike": ("[self.seed, position, zlib.crc32(name.encode())]", "[self.seed, position]"),
        "all_examples_draw_alike": (
            "[self.seed, position, zlib.crc32(name.encode())]",
            "[self.seed, zlib.crc32(name.encode())]",
        ),
        "the_order_of_every_seed": ('[self.seed, zlib.crc32(b"order")]', '[zlib.crc32(b"order")]'),
        "the_first_examples_alone": ("position * len(self.records) // self.examples if", "position if"),
        "a_chain_without_its_past": ('"\\n".join([digest, *ids])', '"\\n".join(ids)'),
        "rows_drawn_by_their_place": ("step * self.batch_size + int(row)", "step * self.batch_size + place"),
    },
    ("data/device_batches.py", "data/test_device_batches.py -k 'device or part or process'"): {
        "the_offset_of_another_host": ("at = np.searchsorted(host.rows, first)", "at = first"),
        "rows_one_off": ("at = np.searchsorted(host.rows, first)", "at = np.searchsorted(host.rows, first) - 1"),
    },
    ("data/augment.py", "data/test_augment.py"): {
        "flips_half_as_often": ("mirror < 2 * self.flip - 1", "mirror < self.flip - 1"),
        "scale_not_even_in_its_logarithm": ("(1 + self.scale) ** size", "1 + self.scale * size"),
        "gain_of_power": ("10 ** (self.gain * decibels / 20)", "10 ** (self.gain * decibels / 10)"),
        "the_whole_recording_is_shifted_away": ("samples.size // 2)", "samples.size)"),
        "noise_whatever_the_loudness": (" * np.sqrt(np.mean(samples**2))", " * np.sqrt(np.mean(np.ones(1)))"),
        "masks_never_reach_the_end": ("start * (length - width + 1)", "start * (length - width) / 2"),
    },
    ("data/tokenize.py", "data/test_tokenize.py -k 'round_trips or character or bytes or learns'"): {
        "text_behind_the_end": ("ids.index(END) if END in ids else len(ids)", "len(ids)"),
        "special_words_are_special_tokens": ("encode_special_tokens = True", "encode_special_tokens = False"),
    },
    ("layers/spectrogram.py", "layers/test_spectrogram.py"): {
        "a_window_of_unit_sum": ("np.sqrt(np.sum(window**2))", "np.sum(window)"),
        "mel_of_magnitudes": ("mel = power.reshape", "mel = np.sqrt(power).reshape"),
        "a_symmetric_window": ("np.arange(length) / length)", "np.arange(length) / (length - 1))"),
    },
    ("data/griffin_lim.py", "data/test_griffin_lim.py"): {
        "phases_without_momentum": ("projected + momentum * (projected - before)", "projected"),
        "overlap_not_squared": ("np.broadcast_to(taper**2,", "np.broadcast_to(taper,"),
        "bands_filled_evenly": ("FILL_STEPS = 50", "FILL_STEPS = 0"),
    },
    ("data/audio_inputs.py", "data/test_inputs.py -k 'speech or wave'"): {
        "frames_of_padding_count": (
            "(frames - frames.mean()) / (frames.std() + 1e-3)",
            "(frames - frames.mean()) / (frames.std() + 1)",
        ),
        "waves_twice_as_loud": ("LEVEL = 0.1", "LEVEL = 0.2"),
    },
    ("data/inputs.py", "data/test_inputs.py -k 'shrinking or grey or sentences'"): {
        "shrunk_by_interpolation": ("cv2.INTER_AREA if", "cv2.INTER_LINEAR if"),
    },
    ("data/formats/splits.py", "data/formats -k 'group or hashed or names'"): {
        "groups_by_id": ("value = id if self.group is None else", "value = id if True else"),
        "salt_is_ignored": ('f"{self.salt}{value}"', 'f"{value}"'),
        "shares_swapped": ('return "test" if place < self.test', 'return "test" if place < self.validation'),
    },
    ("data/formats/media.py", "data/formats -k stay"): {
        "links_are_followed": ("Path(os.path.realpath(root / name))", "root / name"),
    },
    ("data/formats/index.py", "data/formats -k 'wrong_manifests or random or index'"): {
        "names_may_be_equal": ("    if not len(twice):\n", "    if True:\n"),
        "one_example_short": ("return len(self._offsets) - 1", "return len(self._offsets) - 2"),
    },
    ("data/clean.py", "data/test_inputs.py -k 'transparency or sixteen or colour or same_recording'"): {
        "transparency_is_black": ("255 * (1 - opacity)", "0 * (1 - opacity)"),
        "the_lower_byte_is_kept": ("(pixels // 256)", "(pixels % 256)"),
        "the_first_channel_alone": ("samples.mean(axis=1)", "samples[:, 0]"),
    },
    ("data/sources/interactions.py", "data/test_interactions.py"): {
        "synergy_by_and": ("one ^ other for", "one & other for"),
        "splits_draw_alike": ("(source.seed, SPLITS.index(self._split), index)", "(source.seed, index)"),
        "information_in_noise": ("count * (1 - entropy)", "count"),
    },
    ("data/sources/pairs.py", "data/test_sources.py -k published"): {
        "six_test_recordings": ('"test" if index < 5', '"test" if index < 6'),
        "the_same_order_every_cycle": ("{prefix}:{cycle}:{file}", "{prefix}:0:{file}"),
    },
    ("data/sources/cifar10_builder.py", "data/test_cifar10.py -k held_out"): {
        "the_first_of_a_class_are_held_out": (
            "mine[len(mine) - round(VALIDATION * len(mine)) :]",
            "mine[: round(VALIDATION * len(mine))]",
        ),
    },
    ("data/sources/noise.py", "data/test_av_digits.py -k 'levels or recipe'"): {
        "ten_decibels_of_amplitude": ("10 ** (DECIBELS / 20)", "10 ** (DECIBELS / 10)"),
    },
    ("data/sources/digit_strings.py", "data/test_digit_strings.py"): {
        "no_silence_between_digits": (
            "np.zeros(round(rng.uniform(*GAP) * RATE), np.float32)",
            "np.zeros(0, np.float32)",
        ),
    },
    # Evaluation.
    ("metrics/text.py", "metrics/test_text.py -k 'cider or truth'"): {
        "cider_without_idf": ("count * math.log(len(truth) / max(1, having[gram]))", "count"),
        "idf_without_log": (
            "count * math.log(len(truth) / max(1, having[gram]))",
            "count * len(truth) / max(1, having[gram])",
        ),
        "idf_by_occurrences": (
            "Counter(gram for grams in true for gram in grams)",
            "Counter(gram for grams in true for gram in grams.elements())",
        ),
        "cider_of_three_orders": ("ORDERS = (1, 2, 3, 4)", "ORDERS = (1, 2, 3)"),
    },
    ("metrics/statistics.py", "metrics/test_statistic.py -k 'scipy or comparing or slice'"): {
        "intervals_of_90_percent": ("np.percentile(figures, (2.5, 97.5))", "np.percentile(figures, (5, 95))"),
        "p_values_of_zero": ("(1 + as_large.sum()) / (1 + len(by_chance))", "as_large.sum() / len(by_chance)"),
        "one_sided": ("np.abs(by_chance) >= abs(value)", "by_chance >= abs(value)"),
    },
    ("metrics/statistics.py", "metrics/test_statistics.py -k 'holm or error_is or student or t_test or front'"): {
        "holm_not_monotone": (
            "np.maximum.accumulate(np.minimum(1, np.arange(len(p_values), 0, -1) * p_values[order]))",
            "np.minimum(1, np.arange(len(p_values), 0, -1) * p_values[order])",
        ),
        "bonferroni": ("np.arange(len(p_values), 0, -1) * p_values[order]", "len(p_values) * p_values[order]"),
        "variance_of_examples_biased": ("var(ddof=1) / examples", "var(ddof=0) / examples"),
        "noise_counted_twice": ("sum(part for part, _ in parts) - noise", "sum(part for part, _ in parts)"),
        "what_is_beaten_in_both_alone": (
            "~(no_worse & better).any(1) &",
            "~((cost < cost[:, None]) & (value > value[:, None])).any(1) &",
        ),
    },
    ("metrics/classification.py", "metrics/test_classification.py"): {
        "bins_without_their_upper_edge": ("np.ceil(best * BINS).astype(int) - 1", "np.floor(best * BINS).astype(int)"),
        "temperatures_of_their_own_half": ("np.where(odd, other, even)", "np.where(odd, even, other)"),
        "f1_over_all_classes": ("scores.sum(1) / occurs.sum(1)", "scores.mean(1)"),
    },
    ("metrics/regression.py", "metrics/test_regression.py"): {
        "crps_without_its_constant": (" - 1 / np.sqrt(np.pi))", ")"),
        "explained_of_the_powers": ("(powers - totals**2 / counts)", "powers"),
    },
    ("metrics/retrieval.py", "metrics/test_retrieval.py"): {
        "ties_count_for_the_query": (
            "np.count_nonzero(similarity < best[:, None], axis=1)",
            "np.count_nonzero(similarity <= best[:, None], axis=1) - 1",
        ),
        "recall_without_its_last_rank": ("(found <= k)", "(found < k)"),
    },
    ("metrics/distributions.py", "metrics/test_distributions.py"): {
        "covariance_biased": ("np.sqrt(len(features) - 1)", "np.sqrt(len(features))"),
        "a_vector_is_its_own_pair": ("_kernel_sum(x, x, paired=True)", "_kernel_sum(x, x, paired=False)"),
        "density_not_by_neighbours": ("inside / (NEIGHBOURS_DENSITY * len(generated))", "inside / len(generated)"),
        "nearest_is_itself": ("axis=1)[:, neighbours].T", "axis=1)[:, [k - 1 for k in neighbours]].T"),
    },
    ("metrics/information.py", "metrics/test_information.py -k 'gate or random or up or near'"): {
        "union_above_the_whole": ("union - about_b, union - about_a,", "union - about_a, union - about_b,"),
        "redundancy_of_the_larger": ("share * min(about_a, about_b)", "share * max(about_a, about_b)"),
    },
    ("metrics/contributions.py", "metrics/test_contributions.py"): {
        "orders_counted_alike": (
            "math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)",
            "1 / 2 ** (count - 1)",
        ),
    },
    (
        "evaluation/attribution.py",
        "evaluation/test_attribution.py -k 'baseline or linear or covered or orders or compared or windows'",
    ): {
        "gradients_without_their_way": (
            "lambda mean, end, start: mean * (end - start)",
            "lambda mean, end, start: mean * end",
        ),
        "covered_by_zero": (
            "jnp.expand_dims(inside, inner), nothing[name], x)",
            "jnp.expand_dims(inside, inner), 0, x)",
        ),
    },
    ("types.py", "evaluation/test_attribution.py -k 'baseline or linear'"): {
        "the_darkest_colour": ("colours[:, colours.shape[1] // 2, None, None]", "colours[:, 0, None, None]"),
    },
    ("metrics/transfer.py", "metrics/test_transfer.py"): {
        "penalty_not_halved": (
            "slope = train.T @ error + penalty * weights",
            "slope = train.T @ error + penalty / 2 * weights",
        ),
        "votes_seven_times_as_even": ("NEIGHBOURS, TEMPERATURE = 20, 0.07", "NEIGHBOURS, TEMPERATURE = 20, 0.5"),
        "features_not_standardised": (
            "scale = np.where(deviation > 0, deviation, 1)",
            "scale = np.ones_like(deviation)",
        ),
        "nearest_by_length": ("np.square(means).sum(1) - 2 * test @ means.T", "- 2 * test @ means.T"),
    },
    ("metrics/image.py", "metrics/test_image.py"): {
        "psnr_of_amplitudes": ("-10 * np.log10(", "-20 * np.log10("),
        "ssim_with_other_constants": ("0.01**2, 0.03**2", "0.01, 0.03"),
        "ssim_beyond_the_border": ("axis=1)[:, reach:-reach]", "axis=1)[:, reach - 1 : -reach]"),
    },
    ("metrics/audio.py", "metrics/test_audio.py"): {
        "loudness_is_compared": ("[:, 1 : CEPSTRA + 1]", "[:, 0:CEPSTRA]"),
        "sounds_stand_still": ("choice = before.argmin(0)", "choice = before.argmax(0)"),
        "decibels_of_amplitude": ("DECIBELS = 10 / np.log(10)", "DECIBELS = 20 / np.log(10)"),
    },
    ("fusion/base.py", "evaluation/test_rollout.py"): {
        "no_residual": (
            "(jnp.eye(weights.shape[1]) + weights) / (1 + weights.sum(-1, keepdims=True))",
            "weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-9)",
        ),
    },
    ("evaluation/rollout.py", "evaluation/test_rollout.py"): {
        "first_layer_last": ("for mixture in mixtures[::-1]", "for mixture in mixtures"),
    },
    ("evaluation/suites/slices.py", "evaluation/suites/test_slices.py"): {
        "gap_of_neighbours": ("smallest, *_, largest = sorted", "largest, *_, smallest = sorted"),
    },
    ("evaluation/maps.py", "evaluation/test_maps.py"): {
        "for_and_against_swapped": (
            "np.where(map[..., None] > 0, FOR, AGAINST)",
            "np.where(map[..., None] < 0, FOR, AGAINST)",
        ),
    },
    # Sharding, profiles, configuration, files.
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
    ("ablation/scaling.py", "ablation/test_scaling.py -k 'linear or quadratic or hand'"): {
        "growth_by_the_smallest": ("math.log(tokens[-1] / tokens[-2])", "math.log(tokens[-1] / tokens[0])"),
    },
    ("profiling/profile/trace.py", "profiling/test_trace.py -k intervals"): {
        "the_shorter_end": ("max(end, found[-1][1])", "end"),
    },
    ("optim/schedules.py", "optim/test_schedules.py -k extended"): {
        "extended_from_its_cooldown": ("max(steps - round(self.cooldown * steps), self.warmup) if", "steps if"),
        "extended_after_a_shortened_warmup": (
            "return self.warmup if 2 * self.warmup <= steps else 0",
            "return self.warmup",
        ),
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
    ("hardware/machine.py", "hardware/test_machine.py"): {
        "bfloat16_under_jax_0_10": ("(major, minor) >= (0, 12)", "(major, minor) >= (0, 10)"),
        "a_script_is_run_again_by_workers": ("is not None", "is not Ellipsis"),
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
