"""Stacks of frames from a program's tables."""

from mmjax.profiling.frames import Frames

TEXT = """HloModule jit_f

FileNames
1 "/home/me/run.py"
2 "/home/me/mmjax/training/step.py"
3 "/home/me/mmjax/layers/mlp.py"

FunctionNames
1 "<module>"
2 "step"
3 "MLP.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=9}
2 {file_name_id=2 function_name_id=2 line=35 end_line=35 column=1 end_column=9}
3 {file_name_id=3 function_name_id=3 line=19 end_line=19 column=1 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=2 parent_frame_id=3}
4 {file_location_id=3 parent_frame_id=4}

%f (p: f32[]) -> f32[] {
"""


def test_stacks_begin_in_the_package_and_once():
    frames = Frames(TEXT)
    step, perceptron = frames.stack(4)
    assert (str(step), step.function) == ("mmjax/training/step.py:35", "step")
    assert (str(perceptron), perceptron.function) == ("mmjax/layers/mlp.py:19", "MLP.__call__")
    assert frames.stack(2) == (step,)
    assert frames.stack(1) == ()
    assert Frames("HloModule jit_f\n").stack(1) == ()
