"""Wrong lines of inputs, sources, formats, augmentation and batches."""

MUTANTS: dict[tuple[str, str], dict[str, tuple[str, str]]] = {
    ("buckets.py", "test_buckets.py -k 'memory or name_leads or places'"): {
        "a_lock_of_whoever_comes": ('write("create")', 'write("overwrite")'),
        "a_lock_that_is_not_renewed": ("renewal.start()", "pass; renewal.join = lambda: None"),
        "the_dead_hold_their_locks": ("if here and not _runs(", "if False and not _runs("),
        "names_lead_out_of_their_folder": ('in ("..", "."):', 'in ("."):'),
        "one_version_of_every_content": ('if info.get(name)), "")', 'if False), "")'),
    },
    ("growing_file.py", "test_buckets.py -k 'memory and (grows or killed)'"): {
        "lines_are_read_twice": ("if offset >= len(content):", "if True:"),
        "the_last_line_stays": ("        self._size = self._last\n", ""),
        "parts_without_what_was_before": ("_consolidate(path, read_growing(path), parts)", "pass"),
    },
    (
        "data/loader.py",
        "data/test_loader.py -k 'layout or seed or augment or epoch or some_examples or chain'",
    ): {
        "all_features_draw_alike": ("[self.seed, position, zlib.crc32(name.encode())]", "[self.seed, position]"),
        "all_examples_draw_alike": (
            "[self.seed, position, zlib.crc32(name.encode())]",
            "[self.seed, zlib.crc32(name.encode())]",
        ),
        "the_first_examples_alone": ("position * len(self.records) // self.examples if", "position if"),
        "rows_drawn_by_their_place": (
            "ids[row], positions[row])",
            "ids[row], positions[place])",
        ),
    },
    ("data/batching/order.py", "data/test_loader.py -k seed"): {
        "the_order_of_every_seed": ("[seed, zlib.crc32(name.encode())]", "[zlib.crc32(name.encode())]"),
    },
    ("data/batching/packing.py", "data/test_packing.py -k 'not process and not milliseconds'"): {
        "sequences_start_anywhere": ("room -= -(-size // packed.multiple) * packed.multiple", "room -= size"),
        "the_first_row_with_room": (
            "bisect.insort(open_rows, room * rows + row)",
            "open_rows.append(room * rows + row)",
        ),
        "dealt_in_order": ('np.argsort(-spans.max(1), kind="stable").tolist()', "range(len(spans))"),
        "dealt_by_loads_alone": ("loads @ spans[place] + used", "loads.sum(1) + used"),
        "dealt_by_count_alone": ("loads @ spans[place] + used", "used"),
        "cut_more_than_must_be": ("while high - low > 1:", "while high - low > 2:"),
        "rows_for_all_parts_together": ("each * packing.parts for", "each for"),
    },
    ("data/batching/lengths.py", "data/test_lengths.py"): {
        "a_tokenizer_by_its_place": ('.replace(repr(str(file)), "")', ""),
        "a_tokenizer_whatever_it_holds": ("hashlib.sha256(read_regular(file)).hexdigest()", '""'),
        "columns_of_recordings": ("and input.feature.is_text:", "and len(input.reads(name)) == 1:"),
    },
    ("data/audio_inputs.py", "data/test_lengths.py -k 'recording or augmentation'"): {
        "shifts_add_nothing": ("count + round(self.augment.shift * self.rate) if count else 0", "count"),
        "silence_where_nothing_can_be_read": (
            "round(self.augment.shift * self.rate) if count else 0",
            "round(self.augment.shift * self.rate)",
        ),
        "frames_begun_do_not_count": (
            "math.ceil(min(shifted, self._samples) / self._hop)",
            "min(shifted, self._samples) // self._hop",
        ),
    },
    ("data/batching/order.py", "data/test_order.py"): {
        "the_largest_deficit_alone": ("if due[place] >= least]", "if False]"),
        "whoever_comes_next_is_ready": ("if due[place] >= least]", "if True]"),
        "deficits_are_forgotten_at_stages": (
            "counts, owed, position = segment.counts(segment.length), segment.owed,",
            ("counts, position = segment.counts(segment.length),"),
        ),
        "a_limit_one_later": ("divmod(left - 1 - int(", "divmod(left - int("),
        "the_repeated_part_is_counted_from_nothing": (
            "rounds * self._repeated[source] +",
            "0 * self._repeated[source] +",
        ),
        "sources_share_a_permutation": ("ShuffledEpochs(size, seed, name) for", "ShuffledEpochs(size, seed) for"),
        "weights_are_cut_and_not_rounded": ("max(able, key=lambda row: step", "min(able, key=lambda row: step"),
    },
    ("data/mixture.py", "data/test_mixture.py"): {
        "stages_count_examples": ("Shares(stage.start * batch_size,", "Shares(stage.start,"),
        "the_shared_input_reads_all": ("{name: own.get(name, input) for", "{name: input for"),
        "tokenizers_read_the_shared_field": ("if feature not in own:", "if True:"),
        "names_are_those_of_the_source": (
            'return f"{self.name}/{self._records.id(index)}"',
            "return self._records.id(index)",
        ),
        "stages_may_change_the_past": ("if stage.start < step] for each", "if stage.start < 0] for each"),
        "weights_of_new_sources_count_at_once": (
            "if step and name not in old._parts",
            "if False and name not in old._parts",
        ),
        "a_power_of_one": ("Fraction(str(size**alpha))", "Fraction(str(size))"),
    },
    ("data/filters.py", "data/test_filters.py"): {
        "one_item_is_enough": ("return all(map(self._holds_of_item,", "return any(map(self._holds_of_item,"),
        "the_start_alone_matches": ("re.search(self.matches, item)", "re.match(self.matches, item)"),
        "any_condition_is_the_same": (
            "decides = [VERSION, records.fingerprint, split, conditions]",
            ("decides = [VERSION, records.fingerprint, split]"),
        ),
        "names_of_others": ("return self._records.id(int(self._kept[index]))", "return self._records.id(index)"),
    },
    ("data/check.py", "data/test_mixture.py -k fit"): {
        "the_key_of_all_sources": ("        if part:\n            key = ", "        if False:\n            key = "),
    },
    ("evaluation/eval_result.py", "training/test_mixture.py -k own"): {
        "every_source_has_the_metrics_of_all": ("self.subset(parts == part) for", "self.subset(parts != '') for"),
    },
    ("data/batching/host_batch.py", "data/test_loader.py -k chain"): {
        "a_chain_without_its_past": ('"\\n".join([digest, *ids])', '"\\n".join(ids)'),
    },
    ("data/device_batches.py", "data/test_device_batches.py -k 'device or part or process'"): {
        "the_offset_of_another_host": (
            "at = np.searchsorted(host.rows, first * host.size // size)",
            "at = first * host.size // size",
        ),
        "rows_one_off": (
            "// len(host.rows)\n            return local",
            "// len(host.rows) - 1\n            return local",
        ),
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
    ("layers/spectrogram.py", "checkpoint/pretrained/test_audio.py -k whisper_frames"): {
        "bands_of_unit_height": (" * (2 / (edges[2:] - edges[:-2]))", ""),
        "silence_of_70_decibels": ("mel.max() - 8", "mel.max() - 7"),
    },
    ("data/audio_inputs.py", "checkpoint/pretrained/test_audio.py -k samples"): {
        "waves_with_their_mean": ("(wide - wide.mean()) / np.sqrt", "wide / np.sqrt"),
    },
    ("data/griffin_lim.py", "data/test_griffin_lim.py"): {
        "phases_without_momentum": ("projected + momentum * (projected - before)", "projected"),
        "overlap_not_squared": ("np.broadcast_to(taper**2,", "np.broadcast_to(taper,"),
        "bands_filled_evenly": ("FILL_STEPS = 50", "FILL_STEPS = 0"),
    },
    ("data/audio_inputs.py", "data/test_audio_inputs.py -k 'speech or wave'"): {
        "frames_of_padding_count": (
            "(frames - frames.mean()) / (frames.std() + 1e-3)",
            "(frames - frames.mean()) / (frames.std() + 1)",
        ),
        "waves_twice_as_loud": ("LEVEL = 0.1", "LEVEL = 0.2"),
    },
    ("data/inputs.py", "data/test_inputs.py -k 'shrinking or grey or sentences'"): {
        "shrunk_by_interpolation": ("cv2.INTER_AREA if", "cv2.INTER_LINEAR if"),
    },
    ("data/patches_input.py", "data/test_patches_input.py"): {
        "patches_of_the_largest_picture_alone": ("min(longest, self.largest)", "self.largest"),
        "sides_cut_down": ("(2 * dividend + divisor) // (2 * divisor)", "dividend // divisor"),
        "a_picture_on_its_side": ("rows, columns = columns, rows", "pass"),
        "pixels_in_columns": (
            "self.channels).swapaxes(1, 2)\n        values",
            "self.channels).swapaxes(1, 2).swapaxes(2, 3)\n        values",
        ),
        "places_of_corners": ("[(y + 0.5) / rows, (x + 0.5) / columns]", "[y / rows, x / columns]"),
        "shrunk_until_far_below": ("along -= 1", "along //= 2"),
    },
    ("types.py", "data/test_patches_input.py -k 'noise or baseline'"): {
        "noise_moves_patches": ("[pixels, x[..., -2:]], -1)\n\n\n#", "[pixels, pixels[..., -2:]], -1)\n\n\n#"),
        "a_baseline_of_padding_too": ("totals = jnp.where(real, x[..., :-2], 0)", "totals = x[..., :-2]"),
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
    ("data/clean.py", "data/test_inputs.py -k 'transparency or sixteen or colour'"): {
        "transparency_is_black": ("255 * (1 - opacity)", "0 * (1 - opacity)"),
        "the_lower_byte_is_kept": ("(pixels // 256)", "(pixels % 256)"),
    },
    ("data/clean.py", "data/test_audio_inputs.py -k same_recording"): {
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
}
