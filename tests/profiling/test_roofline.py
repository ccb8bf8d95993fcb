"""The course of a program by hand."""

import dataclasses

import pytest

from mmjax.hardware.chips import CHIPS
from mmjax.profiling.hlo import HloModule
from mmjax.profiling.plan.roofline import HOP, START, RooflineSimulator, Route
from tests.profiling.test_hlo import CHAINED, TEXT

CHIP = dataclasses.replace(CHIPS["v5e"], flops=1e12, hbm=1e11)
RATE = 1e9
PRODUCT = 2 * 128 * 256 * 512 / 1e12
GATHER = START + 3 * HOP + 512 * 256 * 2 * 3 / 4 / RATE
SMALL = 2 * (START + HOP) + (1024 * 4 / 2 + 64 * 2) / RATE


def run(text, chip=CHIP):
    return RooflineSimulator(HloModule(text), chip, lambda group: Route(RATE, len(group) - 1, "ici")).run()


def test_one_after_the_other():
    found = run(TEXT)
    # What the last two read and write takes less than their communication.
    assert found.seconds == pytest.approx(7 * (PRODUCT + GATHER) + SMALL)
    assert found.compute == pytest.approx(7 * PRODUCT)
    assert found.compute + found.memory + found.ici == pytest.approx(found.seconds)
    assert found.dcn == 0
    assert found.parts["mmjax/layers/mlp.py:21"] == pytest.approx(7 * PRODUCT)
    assert sum(found.parts.values()) == pytest.approx(found.seconds)


def test_what_is_said_meanwhile_is_waited_for_only_at_its_end():
    done = "  %all-gather-done.1 = bf16[512,256]{1,0} all-gather-done(%all-gather-start.1)\n"
    early = TEXT.replace(done, "").replace("fusion(%x, %all-gather-done.1)", "fusion(%x, %x)")
    late = early.replace("  %n = s32", done + "  %n = s32")
    assert run(late).seconds == pytest.approx(7 * max(PRODUCT, GATHER) + SMALL)
    slow = dataclasses.replace(CHIP, flops=1e10)
    found = run(late, slow)
    assert found.seconds == pytest.approx(7 * 100 * PRODUCT + SMALL)
    assert found.ici + found.memory == pytest.approx(SMALL)


def test_a_collective_that_is_taken_apart_moves_only_beside_what_it_is_fused_with():
    alone = run(CHAINED).compute / 7
    for flops in (1e12, 1e10):
        found = run(CHAINED, dataclasses.replace(CHIP, flops=flops, hbm=1e18))
        product = alone * 1e12 / flops
        assert found.compute == pytest.approx(7 * product)
        assert found.seconds == pytest.approx(7 * max(product, GATHER) + SMALL)


def test_memory_holds_up_what_calculates_little():
    found = run(TEXT, dataclasses.replace(CHIP, flops=1e18))
    assert found.memory > 7 * (128 * 512 + 512 * 256) * 2 / 1e11
    assert found.compute < 1e-6


def test_products_are_filled_up_to_tiles():
    odd = TEXT.replace("512,256]", "512,130]").replace("128,256]", "128,130]")
    assert run(odd).compute == pytest.approx(7 * PRODUCT)
    assert run(TEXT, dataclasses.replace(CHIP, flops=0.5e12)).compute == pytest.approx(2 * 7 * PRODUCT)


@pytest.mark.parametrize(("kind", "chip", "faster"), [("s8", "v5e", 2), ("f8e4m3fn", "v5e", 1), ("s8", "v4", 1)])
def test_products_of_8_bit_numbers_are_twice_as_fast_where_the_chip_has_them(kind, chip, faster):
    chip = dataclasses.replace(CHIPS[chip], flops=1e12, hbm=1e18)
    assert run(TEXT.replace("bf16", kind), chip).compute == pytest.approx(7 * PRODUCT / faster)
