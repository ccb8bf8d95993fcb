"""Wrong lines of heads, fusion, layers, encoders and the model."""

MUTANTS: dict[tuple[str, str], dict[str, tuple[str, str]]] = {
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
    ("layers/packed.py", "encoders/test_packed.py"): {
        "positions_of_the_row": ("places - jax.lax.cummax(", "places - 0 * jax.lax.cummax("),
        "examples_of_the_first_part": ("rows * x.shape[1] + starts", "starts"),
        "a_token_too_few": ("-(-lengths // stride)", "(lengths // stride)"),
    },
    ("layers/attention_kernels.py", "encoders/test_packed.py -k equals"): {
        "segments_see_each_other": ("(mask == jnp.swapaxes(mask, 2, 3)) & (mask > 0)", "(mask > 0)"),
    },
    ("layers/patches.py", "encoders/test_packed.py -k audio"): {
        "windows_over_the_ends_of_segments": ("jnp.where(own, windows, 0)", "windows"),
    },
    ("encoders/recurrent.py", "encoders/test_packed.py -k 'gru or lstm'"): {
        "states_cross_segments": ("if first is not None:", "if False:"),
    },
    ("layers/attention.py", "layers/test_layers.py -k 'attention or masked_mean or block'"): {
        "attention_to_nothing_is_something": (
            "jnp.where((mask > 0 if has_segments(mask) else mask.any(1)[:, None])[..., None], y, 0)",
            "y",
        ),
        "mean_over_all_places": ("jnp.maximum(weights.sum(1, keepdims=True), 1)", "weights.shape[1]"),
        "perceptron_without_residual": (
            "return x + self._branch(self.mlp(self.mlp_norm(x))",
            "return self._branch(self.mlp(self.mlp_norm(x))",
        ),
    },
    ("layers/attention_kernels.py", "layers/test_layers.py -k attention"): {
        "scores_by_the_whole_head": (
            "preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5",
            "preferred_element_type=jnp.float32) / query.shape[-1]",
        ),
        "masked_tokens_are_seen": ("jnp.where(visible(mask), logits, lowest)", "logits"),
    },
    ("layers/attention_kernels.py", "generators/test_text.py -k memories"): {
        "the_next_token_is_seen": (
            "jnp.tri(logits.shape[2], logits.shape[3], dtype=bool)",
            "jnp.tri(logits.shape[2], logits.shape[3], 1, dtype=bool)",
        ),
    },
    ("layers/norm.py", "layers/test_layers.py -k 'norm or dropout'"): {
        "norm_of_the_sum": ("jnp.mean(jnp.square(x)", "jnp.sum(jnp.square(x)"),
        "dropout_not_scaled_up": ("x / (1 - rate)", "x"),
    },
    ("layers/position.py", "layers/test_layers.py -k time_embedding"): {
        "periods_up_to_20_s": ("jnp.log(0.005)", "jnp.log(0.05)"),
    },
    ("layers/linear.py", "layers/test_layers.py -k 'linear or embedding or born'"): {
        "variance_of_the_outputs": ('scale, "fan_in"', 'scale, "fan_out"'),
        "table_twice_as_wide": ("normal(width**-0.5)", "normal(1.0)"),
    },
    ("layers/lora.py", "layers/test_lora.py -k 'hand or equals or refused'"): {
        "update_not_scaled": ("self.scale * contract(low", "contract(low"),
        "merged_without_scale": ("kernel + self.scale * update", "kernel + update"),
        "last_pattern_counts": ("LoraLinear(node, matching[0], rngs)", "LoraLinear(node, matching[-1], rngs)"),
        "starts_with_an_update": ("make(jax.nn.initializers.zeros, shape", "make(init, shape"),
        "biases_are_trained": ("if not is_lora(name)\n    ]", 'if name == "kernel"\n    ]'),
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
            "jnp.pad(jnp.where(mask[..., None] > 0, x, 0), ((0, 0), (0, missing)",
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
        "pixels_not_centred": ("(pixels - jnp.array(mean))", "pixels"),
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
        "time_of_the_first_frame": ("(places + 0.5) * self.stride", "places * self.stride"),
        "masked_frames_reach_the_convolution": (
            "x = jnp.where(mask[..., None] > 0, x, 0)",
            "pass",
        ),
    },
    ("encoders/waveform.py", "encoders/test_waveform.py -k 'not_there and first'"): {
        "masked_samples_reach_the_convolutions": ("jnp.where(mask, values, 0)", "values"),
        "masked_tokens_reach_positions": (
            "jnp.where(mask[..., None], self.embed(self.embed_norm(x)), 0)",
            "self.embed(self.embed_norm(x))",
        ),
        "windows_of_some_samples": ("windows.all(0) | ", "windows.any(0) | "),
        "time_of_the_first_sample": ("math.prod(self.strides) + self.window / 2", "math.prod(self.strides)"),
    },
    ("layers/norm.py", "encoders/test_waveform.py -k 'not_there and first'"): {
        "variance_of_padding": ("jnp.where(real, jnp.square(wide), 0)", "jnp.square(wide)"),
    },
    ("layers/conv.py", "checkpoint/pretrained/test_audio.py -k 'wav2vec2 and layer'"): {
        "one_norm_of_all_offsets": ("jnp.square(direction).sum((1, 2))", "jnp.square(direction).sum()"),
        "an_even_kernel_sees_what_comes": (
            "[(around, kernel.shape[0] - 1 - around)]",
            "[(kernel.shape[0] - 1 - around, around)]",
        ),
    },
    ("encoders/text.py", "encoders/test_encoders.py -k text_transformer"): {
        "tokens_without_position": (" + select_positions(self.position, mask, self.dtype, self.rules)", ""),
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
        "absent_tokens_are_real": ("mask=tokens.mask & present[:, None]", "mask=tokens.mask"),
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
}
