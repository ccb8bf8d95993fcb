"""Wrong lines of metrics, attribution and suites."""

MUTANTS: dict[tuple[str, str], dict[str, tuple[str, str]]] = {
    ("evaluation/captions.py", "evaluation/test_captions.py"): {
        "pictures_once_for_every_caption": ("others_present[:, 0] = result", "others_present[:, :1] = ~result"),
        "only_the_first_caption_is_right": ("np.repeat(np.arange(examples), count)", "np.arange(examples * count)"),
        "the_first_caption_again": ("texts[self._n] if self._n < len(texts) else None", "texts[0] if texts else None"),
        "one_caption_fewer": ("for n in range(1, most):", "for n in range(1, most - 1):"),
    },
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
}
