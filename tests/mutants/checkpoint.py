"""Wrong lines where parameters are read and written."""

MUTANTS: dict[tuple[str, str], dict[str, tuple[str, str]]] = {
    ("checkpoint/int8.py", "checkpoint/test_int8.py"): {
        "rounded_down": ("np.rint(array / scale)", "np.floor(array / scale)"),
        "half_of_the_range": ("/ np.float32(LARGEST_INTEGER)", "/ np.float32(64)"),
        "one_scale_for_all_rows": (
            'axis = -1 if name.endswith("embedding") else int(np.argmax(array.shape))',
            "axis = int(np.argmax(array.shape))",
        ),
        "vectors_too": ("array.ndim < 2", "array.ndim < 1"),
    },
    ("checkpoint/pretrained/tensor_map.py", "checkpoint/pretrained/test_architectures.py -k 'bert or siglip'"): {
        "always_the_first_part": ("wanted[SPLIT] = (self.part[0], self.part[0] + 1)", "wanted[SPLIT] = (0, 1)"),
        "nothing_added": (
            "return found if self.plus is None else found + self.plus.read(folder, shape, index)",
            "return found",
        ),
        "last_layer_first": ("for name in names])", "for name in names[::-1]])"),
        "ids_as_there": ("self.order[ranges[0]], ranges)", "range(len(self.order))[ranges[0]], ranges)"),
    },
    ("export/primitives.py", "export/test_primitives.py"): {
        "loops_backward": ('if params["reverse"] else', 'if not params["reverse"] else'),
    },
    ("export/onnx.py", "export/test_onnx.py -k before"): {
        "jax_stays_changed": ("vars(module).update(before)", "pass"),
    },
    ("checkpoint/exported.py", "checkpoint/test_initialize.py -k export"): {
        "any_step_of_an_export": ("if step not in (None, self.step):", "if False:"),
    },
}
